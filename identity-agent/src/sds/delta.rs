//! `DeltaSecrets`: an answer has what is new, and names what is gone.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, BoxStream, StreamExt as _};
use postern_proto::sds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use tonic::{Status, Streaming};

use super::{
    Subscriber, is_of_secrets, log_refusal,
    secrets::{EVERYTHING, SECRET, all_names, any, secret, version},
};
use crate::workload_api::stream::Held;

struct State {
    caller: Subscriber,
    requests: Streaming<DeltaDiscoveryRequest>,
    wanted: Option<Wanted>,
    /// What the reader has: versions by name; without one, it knows that there is nothing.
    known: BTreeMap<String, Option<String>>,
    held: Option<Held>,
    answers: u64,
}

/// What a reader has subscribed to.
#[derive(Default)]
struct Wanted {
    /// Everything that there is, called so or by naming nothing at first.
    everything: bool,
    names: BTreeSet<String>,
}

impl Wanted {
    fn subscribe(&mut self, name: String) -> Result<(), Status> {
        if name == EVERYTHING {
            self.everything = true;
            return Ok(());
        }
        if self.names.len() >= MAX_NAMES {
            return Err(Status::resource_exhausted(format!(
                "a stream has at most {MAX_NAMES} names"
            )));
        }
        self.names.insert(name);
        Ok(())
    }

    fn unsubscribe(&mut self, name: &str) {
        match name {
            EVERYTHING => self.everything = false,
            _ => {
                self.names.remove(name);
            }
        }
    }
}

pub(super) fn stream(
    caller: Subscriber,
    requests: Streaming<DeltaDiscoveryRequest>,
) -> BoxStream<'static, Result<DeltaDiscoveryResponse, Status>> {
    let state = State {
        caller,
        requests,
        wanted: None,
        known: BTreeMap::new(),
        held: None,
        answers: 0,
    };
    // An error is the last message.
    stream::unfold(Some(state), |state| async {
        let mut state = state?;
        match state.next().await {
            Ok(Some(answer)) => Some((Ok(answer), Some(state))),
            Ok(None) => None,
            Err(status) => Some((Err(status), None)),
        }
    })
    .boxed()
}

impl State {
    /// The next answer; none when the reader has no more to ask.
    async fn next(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        loop {
            let held = self.held.as_ref();
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(request) => self.hear(request)?,
                    None => return Ok(None),
                },
                () = self.caller.wait(held) => {}
            }
            if self.wanted.is_none() {
                // It has asked for nothing yet; it must be somebody all the same.
                self.caller.held().await?;
                continue;
            }
            let (entitled, held) = self.caller.held().await?;
            let answer = self.difference(&held);
            if answer.is_some() {
                self.caller.tells(&entitled, &held)?;
            }
            self.held = Some(held);
            if answer.is_some() {
                return Ok(answer);
            }
        }
    }

    fn hear(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        is_of_secrets(&request.type_url)?;
        if let Some(why) = &request.error_detail {
            log_refusal(&self.caller.follower.process, why);
        }
        let subscribe = request.resource_names_subscribe;
        match &mut self.wanted {
            // The first question: without names, everything. What an earlier stream told counts.
            None => {
                let known = request.initial_resource_versions.into_iter();
                self.known = known
                    .take(MAX_NAMES)
                    .map(|(name, version)| (name, Some(version)))
                    .collect();
                let mut wanted = Wanted {
                    everything: subscribe.is_empty(),
                    ..Wanted::default()
                };
                for name in subscribe {
                    wanted.subscribe(name)?;
                }
                self.wanted = Some(wanted);
            }
            Some(wanted) => {
                for name in request.resource_names_unsubscribe {
                    wanted.unsubscribe(&name);
                    self.known.remove(&name);
                }
                for name in subscribe {
                    // Asked for again, it is told again.
                    self.known.remove(&name);
                    wanted.subscribe(name)?;
                }
            }
        }
        Ok(())
    }

    fn difference(&mut self, held: &Held) -> Option<DeltaDiscoveryResponse> {
        let own = &self.caller.own;
        let wanted = self.wanted.as_ref()?;
        let mut names = wanted.names.clone();
        if wanted.everything {
            names.extend(all_names(held, own));
        }
        let (mut resources, mut removed) = (Vec::new(), Vec::new());
        let mut now = BTreeMap::new();
        for name in &names {
            let contents = secret(name, held, own).map(|secret| any(SECRET, &secret));
            let version = contents.as_ref().map(|contents| version([contents]));
            let is_same = self.known.get(name) == Some(&version);
            now.insert(name.clone(), version.clone());
            match (contents, version) {
                _ if is_same => {}
                (Some(contents), Some(version)) => resources.push(Resource {
                    name: name.clone(),
                    version,
                    resource: Some(contents),
                }),
                _ => removed.push(name.clone()),
            }
        }
        let gone = self.known.iter();
        let gone = gone.filter(|(name, version)| version.is_some() && !names.contains(*name));
        removed.extend(gone.map(|(name, _)| name.clone()));
        self.known = now;
        if resources.is_empty() && removed.is_empty() {
            return None;
        }
        self.answers += 1;
        Some(DeltaDiscoveryResponse {
            system_version_info: String::new(),
            resources,
            type_url: SECRET.into(),
            nonce: self.answers.to_string(),
            removed_resources: removed,
        })
    }
}

/// More than any Envoy asks one stream for.
const MAX_NAMES: usize = 1_000;
