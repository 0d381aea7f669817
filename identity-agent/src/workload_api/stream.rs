//! The streams: the first message at once, then one for every change, each the whole state.
//!
//! A message is made when the client is ready to take it, so a slow reader gets the newest state
//! and nothing piles up. The right to the stream is asked again on every change, on a timer and
//! before every rotation; one that lost it ends with `PermissionDenied`.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use futures_util::stream::{self, BoxStream, StreamExt as _};
use postern_policies::model::workload::WorkloadName;
use postern_proto::workload_api::{
    JwtBundlesResponse, X509BundlesResponse, X509svid, X509svidResponse,
};
use tonic::Status;

use crate::{
    admission::Follower,
    agent::{Agent, CannotIssue, Entitled, Trust, Warm},
    audit,
    authority::StateError,
};

/// A stream of one method.
pub(crate) fn of<M: Message>(follower: Follower) -> BoxStream<'static, Result<M, Status>> {
    let subscription = Subscription::<M> {
        follower,
        sent: None,
    };
    // An error is the last message.
    stream::unfold(Some(subscription), |subscription| async {
        let mut subscription = subscription?;
        match subscription.next().await {
            Ok(message) => Some((Ok(message), Some(subscription))),
            Err(status) => Some((Err(status), None)),
        }
    })
    .boxed()
}

/// What the answers of a method are made of.
pub(crate) trait Message: Sized + Send + 'static {
    /// Its name, for the audit log.
    const METHOD: &'static str;

    /// What the client has once it got the message.
    type State: PartialEq + Send + Sync + 'static;

    /// What it should have now.
    fn state(agent: &Agent, entitled: &Entitled) -> Result<Self::State, Status>;

    /// The same, if it is known, and nobody has to be waited for to tell.
    fn known(_: &Agent, _: &Entitled) -> Option<Self::State> {
        None
    }

    /// When a part of it is to be renewed.
    fn renew_at(_: &Self::State) -> Option<Instant> {
        None
    }

    /// The serial numbers of the X.509-SVIDs in it, for the audit log.
    fn serials(_: &Self::State) -> Vec<String> {
        Vec::new()
    }

    /// The message that brings the client there.
    fn of(agent: &Agent, state: &Self::State) -> Self;
}

/// Everything that a workload holds.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) svids: Vec<HeldSvid>,
    pub(crate) trust: Arc<Trust>,
}

/// One of its identities.
#[derive(Debug)]
pub(crate) struct HeldSvid {
    workload: WorkloadName,
    hint: Option<String>,
    pub(crate) warm: Arc<Warm>,
}

impl Held {
    /// What a caller should hold now: the SVIDs that its pod has, or new ones. Blocking.
    pub(crate) fn now(agent: &Agent, entitled: &Entitled) -> Result<Self, CannotIssue> {
        let now = SystemTime::now();
        let svids = entitled.workloads.iter().map(|workload| {
            Ok(HeldSvid {
                workload: workload.name.clone(),
                hint: workload.hint.clone(),
                warm: agent.svid(workload, entitled, now)?,
            })
        });
        Ok(Self {
            svids: svids.collect::<Result<_, CannotIssue>>()?,
            trust: agent
                .trust(&entitled.federates_with())
                .inspect_err(|error| tracing::error!(%error, "cannot issue"))?,
        })
    }

    /// The same, if all of it is known, and nobody has to be waited for to tell.
    fn known(agent: &Agent, entitled: &Entitled) -> Option<Self> {
        let svids = entitled.workloads.iter().map(|workload| {
            Some(HeldSvid {
                workload: workload.name.clone(),
                hint: workload.hint.clone(),
                warm: agent.known_svid(workload, entitled.pod)?,
            })
        });
        Some(Self {
            svids: svids.collect::<Option<_>>()?,
            trust: agent.known_trust(&entitled.federates_with())?,
        })
    }

    /// The serial numbers of the SVIDs.
    pub(crate) fn serials(&self) -> Vec<String> {
        self.svids.iter().map(|svid| svid.warm.serial()).collect()
    }

    /// When the first of the SVIDs is to be renewed.
    pub(crate) fn renew_at(&self) -> Option<Instant> {
        self.svids.iter().map(|svid| svid.warm.renew_at()).min()
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        let is_same = |(one, other): (&HeldSvid, &HeldSvid)| {
            one.workload == other.workload
                && one.hint == other.hint
                && Arc::ptr_eq(&one.warm, &other.warm)
        };
        self.svids.len() == other.svids.len()
            && self.svids.iter().zip(&other.svids).all(is_same)
            && self.trust == other.trust
    }
}

impl Message for X509svidResponse {
    const METHOD: &'static str = "FetchX509SVID";

    type State = Held;

    fn state(agent: &Agent, entitled: &Entitled) -> Result<Held, Status> {
        Held::now(agent, entitled).map_err(|error| Status::unavailable(error.told()))
    }

    fn known(agent: &Agent, entitled: &Entitled) -> Option<Held> {
        Held::known(agent, entitled)
    }

    fn renew_at(held: &Held) -> Option<Instant> {
        held.renew_at()
    }

    fn serials(held: &Held) -> Vec<String> {
        held.serials()
    }

    fn of(_: &Agent, held: &Held) -> Self {
        let svids = held.svids.iter().map(|svid| X509svid {
            spiffe_id: svid.warm.spiffe_id().to_owned(),
            x509_svid: svid.warm.chain().clone(),
            x509_svid_key: svid.warm.key().to_vec(),
            bundle: held.trust.bundle.clone(),
            hint: svid.hint.clone().unwrap_or_default(),
        });
        Self {
            svids: svids.collect(),
            crl: held.trust.lists.clone(),
            federated_bundles: held.trust.federated.iter().cloned().collect(),
        }
    }
}

impl Message for X509BundlesResponse {
    const METHOD: &'static str = "FetchX509Bundles";

    type State = Arc<Trust>;

    fn state(agent: &Agent, entitled: &Entitled) -> Result<Arc<Trust>, Status> {
        agent
            .trust(&entitled.federates_with())
            .map_err(|error| unavailable(&error))
    }

    fn known(agent: &Agent, entitled: &Entitled) -> Option<Arc<Trust>> {
        agent.known_trust(&entitled.federates_with())
    }

    fn of(agent: &Agent, trust: &Arc<Trust>) -> Self {
        let own = agent.authority.trust_domain().id_string();
        let own = std::iter::once((own, trust.bundle.to_vec()));
        Self {
            crl: trust.lists.clone(),
            bundles: own.chain(trust.federated.iter().cloned()).collect(),
        }
    }
}

impl Message for JwtBundlesResponse {
    const METHOD: &'static str = "FetchJWTBundles";

    type State = Vec<(String, Vec<u8>)>;

    fn state(agent: &Agent, entitled: &Entitled) -> Result<Self::State, Status> {
        let bundles = agent.jwt_bundles(&entitled.federates_with());
        let bundles = bundles.iter().map(|bundle| {
            let name = bundle.trust_domain().id_string();
            (name, bundle.to_json().into_bytes())
        });
        Ok(bundles.collect())
    }

    fn of(_: &Agent, bundles: &Self::State) -> Self {
        Self {
            bundles: bundles.iter().cloned().collect(),
        }
    }
}

/// One stream: whose it is, and what it was sent last.
struct Subscription<M: Message> {
    follower: Follower,
    sent: Option<M::State>,
}

impl<M: Message> Subscription<M> {
    /// Waits for something to say, and says it.
    async fn next(&mut self) -> Result<M, Status> {
        loop {
            // The first time there is a reason to look.
            if let Some(sent) = &self.sent {
                self.follower.wait(M::renew_at(sent)).await;
            }
            audit::room(&self.follower.agent).await?;
            let (entitled, state) = match self.follower.at_once(M::known) {
                Some(known) => known,
                None => self.follower.now(M::state).await?,
            };
            if self.sent.as_ref() == Some(&state) {
                continue;
            }
            let Follower { agent, process, .. } = &self.follower;
            audit::tells(agent, M::METHOD, process, &entitled, &M::serials(&state))?;
            let message = M::of(agent, &state);
            self.sent = Some(state);
            return Ok(message);
        }
    }
}

pub(crate) fn unavailable(error: &StateError) -> Status {
    tracing::error!(%error, "cannot issue");
    Status::unavailable("cannot issue now")
}
