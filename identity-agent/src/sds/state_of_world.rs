//! `StreamSecrets`: every answer has all that was asked for.

use futures_util::stream::{self, BoxStream, StreamExt as _};
use postern_proto::sds::{DiscoveryRequest, DiscoveryResponse};
use tonic::{Status, Streaming};

use super::{
    Subscriber, is_of_secrets, log_refusal,
    secrets::{EVERYTHING, SECRET, all_names, any, secret, unknown, version},
};
use crate::workload_api::stream::Held;

struct State {
    caller: Subscriber,
    requests: Streaming<DiscoveryRequest>,
    names: Vec<String>,
    sent: Option<Sent>,
    answers: u64,
}

/// What the reader has.
struct Sent {
    held: Held,
    nonce: String,
}

pub(super) fn stream(
    caller: Subscriber,
    requests: Streaming<DiscoveryRequest>,
) -> BoxStream<'static, Result<DiscoveryResponse, Status>> {
    let state = State {
        caller,
        requests,
        names: Vec::new(),
        sent: None,
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
    async fn next(&mut self) -> Result<Option<DiscoveryResponse>, Status> {
        loop {
            let is_asked = match self.event().await? {
                Event::Ended => return Ok(None),
                Event::Asked(request) => self.asks(request)?,
                Event::Changed => false,
            };
            if self.sent.is_none() && !is_asked {
                // It has asked for nothing yet; it must be somebody all the same.
                self.caller.held().await?;
                continue;
            }
            let (entitled, held) = self.caller.held().await?;
            let is_same = self.sent.as_ref().is_some_and(|sent| sent.held == held);
            if is_same && !is_asked {
                continue;
            }
            self.answers += 1;
            let nonce = self.answers.to_string();
            let answer = answer(&self.names, &held, &self.caller.own, nonce.clone())?;
            self.caller.tells(&entitled, &held)?;
            self.sent = Some(Sent { held, nonce });
            return Ok(Some(answer));
        }
    }

    async fn event(&mut self) -> Result<Event, Status> {
        let held = self.sent.as_ref().map(|sent| &sent.held);
        tokio::select! {
            request = self.requests.message() => {
                Ok(request?.map_or(Event::Ended, Event::Asked))
            }
            () = self.caller.wait(held) => Ok(Event::Changed),
        }
    }

    /// Is this a question, or the word that the last answer arrived?
    fn asks(&mut self, request: DiscoveryRequest) -> Result<bool, Status> {
        is_of_secrets(&request.type_url)?;
        if let Some(why) = &request.error_detail {
            log_refusal(&self.caller.follower.process, why);
        }
        // The first question may carry the nonce of an earlier stream, as after our restart.
        if let Some(sent) = &self.sent {
            let is_late =
                !request.response_nonce.is_empty() && request.response_nonce != sent.nonce;
            if is_late || request.resource_names == self.names {
                return Ok(false);
            }
        }
        self.names = request.resource_names;
        Ok(true)
    }
}

enum Event {
    Asked(DiscoveryRequest),
    Changed,
    Ended,
}

/// Everything of these names; without names, all that there is.
pub(super) fn answer(
    names: &[String],
    held: &Held,
    own: &str,
    nonce: String,
) -> Result<DiscoveryResponse, Status> {
    let is_all = names.is_empty() || names.iter().any(|name| name == EVERYTHING);
    let mut all = match is_all {
        true => all_names(held, own),
        false => Vec::new(),
    };
    let named = names.iter().filter(|name| *name != EVERYTHING);
    let named: Vec<String> = named.filter(|name| !all.contains(name)).cloned().collect();
    all.extend(named);
    let resources = all.iter().map(|name| {
        let secret = secret(name, held, own).ok_or_else(|| unknown(name))?;
        Ok(any(SECRET, &secret))
    });
    let resources = resources.collect::<Result<Vec<_>, Status>>()?;
    Ok(DiscoveryResponse {
        version_info: version(&resources),
        resources,
        type_url: SECRET.into(),
        nonce,
    })
}
