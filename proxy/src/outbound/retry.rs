//! Whether a request that failed is tried again. Pure.

use std::time::Duration;

use http::StatusCode;

use crate::pool::UpstreamError;

/// How a try ended that may be worth another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There was no connection.
    Connect,
    /// There was none in time.
    ConnectTimeout,
    /// There was somebody else, or they refused us.
    Tls,
    /// There was no answer in time.
    Timeout,
    /// The answer was none.
    Broken,
    /// The upstream says that it cannot answer now.
    Unavailable,
}

impl Failure {
    /// What an error means for retries; some of them mean that another try is of no use.
    pub(crate) fn of(error: &UpstreamError) -> Option<Self> {
        match error {
            UpstreamError::Connect(_) => Some(Self::Connect),
            UpstreamError::ConnectTimeout(_) => Some(Self::ConnectTimeout),
            UpstreamError::Tls(_) => Some(Self::Tls),
            UpstreamError::Timeout => Some(Self::Timeout),
            UpstreamError::Answer(_) | UpstreamError::Ambiguous(_) => Some(Self::Broken),
            UpstreamError::Caller(_) | UpstreamError::Request | UpstreamError::Bound(_) => None,
        }
    }

    /// What a status says of its endpoint.
    pub(crate) fn of_status(status: StatusCode) -> Option<Self> {
        (status == StatusCode::SERVICE_UNAVAILABLE).then_some(Self::Unavailable)
    }

    /// The word for it in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect_timeout",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A status by which an upstream says that it, or what is behind it, does not work.
pub(crate) fn is_gateway_failure(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Whether another try makes sense, leaving the budget aside. `others` are endpoints that were not
/// tried.
pub(crate) fn makes_sense(failure: Failure, tries: u32, attempts: u32, others: bool) -> bool {
    let may_pass = match failure {
        // A wrong identity does not become the right one by asking again, and who is silent has had
        // the time that there is.
        Failure::Tls | Failure::ConnectTimeout => others,
        _ => true,
    };
    tries < attempts && may_pass
}

/// How long to wait before the next try, with `random` to spread them. Where there is another
/// endpoint there is nothing to wait for.
pub(crate) fn pause(tries: u32, others: bool, random: u64) -> Duration {
    if others {
        return Duration::ZERO;
    }
    let most = BASE.saturating_mul(1 << tries.min(4));
    let part = u32::try_from(random % 1024).unwrap_or_default();
    most / 2 + (most / 2).saturating_mul(part) / 1024
}

const BASE: Duration = Duration::from_millis(25);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Failure, makes_sense, pause};
    use crate::pool::UpstreamError;

    #[test]
    fn what_another_try_may_mend_is_tried_again() {
        use Failure::{Broken, Connect, ConnectTimeout, Timeout, Tls, Unavailable};
        for (failure, tries, attempts, others, expected) in [
            (Connect, 0, 2, false, true),
            (Connect, 1, 2, false, true),
            (Connect, 2, 2, false, false),
            (Connect, 0, 0, true, false),
            (ConnectTimeout, 0, 2, false, false),
            (ConnectTimeout, 0, 2, true, true),
            (Tls, 0, 2, false, false),
            (Tls, 0, 2, true, true),
            (Timeout, 0, 2, false, true),
            (Broken, 0, 2, false, true),
            (Unavailable, 0, 2, false, true),
            (Unavailable, 2, 2, true, false),
        ] {
            let found = makes_sense(failure, tries, attempts, others);
            assert_eq!(found, expected, "{failure:?} {tries} {attempts} {others}");
        }
    }

    #[test]
    fn what_is_ours_or_the_callers_is_not() {
        for error in [
            UpstreamError::Caller("gone".into()),
            UpstreamError::Request,
            UpstreamError::Bound("pending"),
        ] {
            assert_eq!(Failure::of(&error), None, "{error}");
        }
        assert!(Failure::of(&UpstreamError::Timeout).is_some());
    }

    #[test]
    fn pauses_grow_and_are_spread() {
        assert_eq!(pause(0, true, 9), Duration::ZERO);
        for (tries, most) in [(0, 25), (1, 50), (2, 100), (9, 400)] {
            let most = Duration::from_millis(most);
            assert_eq!(pause(tries, false, 0), most / 2);
            let late = pause(tries, false, 1023);
            assert!(late > most * 9 / 10 && late < most, "{late:?}");
        }
    }
}
