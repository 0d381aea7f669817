//! Questions to the API server: one page of a list, and a watch.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use postern_https::{Answer, Client, Trust};
use serde::de::DeserializeOwned;
use tokio::{task::spawn_blocking, time::timeout};

use super::{
    Kind, Server,
    cache::Full,
    lines::Lines,
    object::{Failure, List, Object, WatchEvent, What},
};
use crate::guarded;

/// An API server.
#[derive(Debug, Clone)]
pub(super) struct Api {
    server: Arc<Server>,
}

/// Why a kind cannot be followed for now. What is known of it stays.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// No connection, or one that broke.
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    Files(String),
    #[error(
        "the API server does not take the token of `{0}`: it is expired, or of another cluster"
    )]
    Unauthorized(String),
    #[error(
        "the API server forbids it: {message}; the agent's ClusterRole needs the rule \
         {{apiGroups: [\"{}\"], resources: [{}], verbs: [list, watch]}}", .kind.group(), .kind.resource()
    )]
    Forbidden { kind: Kind, message: String },
    /// The kind is not there.
    #[error("the API server has no such kind")]
    Missing,
    /// What is asked for is too old.
    #[error("the API server does not remember as far back: {0}")]
    Gone(String),
    #[error("the API server answers {status}: {message}")]
    Other {
        status: u16,
        message: String,
        retry_after: Option<Duration>,
    },
    #[error("{what} has more than {max_bytes} bytes, which is the limit of what is read")]
    TooLarge {
        what: &'static str,
        max_bytes: usize,
    },
    #[error("the API server says what cannot be read: {0}")]
    Unreadable(String),
    #[error(transparent)]
    Full(#[from] Full),
}

impl ApiError {
    /// A short, stable label for metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Files(_) => "files",
            Self::Unauthorized(_) => "unauthorized",
            Self::Forbidden { .. } => "forbidden",
            Self::Missing => "missing",
            Self::Gone(_) => "gone",
            Self::Other { .. } => "other",
            Self::TooLarge { .. } | Self::Full(_) => "too_large",
            Self::Unreadable(_) => "unreadable",
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Other { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// What is known once a page was read.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) objects: Vec<Object>,
    /// What of them counts takes so much as text.
    pub(super) bytes: usize,
    pub(super) resource_version: String,
    /// Where the next one begins.
    pub(super) next: Option<String>,
}

/// One change.
#[derive(Debug)]
pub(super) enum Event {
    /// This is what it is now.
    Is(Object),
    /// It is gone.
    Gone(Object),
    /// Nothing has happened up to the version of this.
    Bookmark(Object),
}

impl Api {
    pub(super) fn of(server: Arc<Server>) -> Self {
        Self { server }
    }

    /// A page of all objects of a kind; the first one where `next` is none. Without a limit all come in
    /// one page.
    pub(super) async fn page(
        &self,
        kind: Kind,
        version: &str,
        next: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Page, ApiError> {
        let mut query = form_urlencoded(&[]);
        if let Some(limit) = limit {
            query = form_urlencoded(&[("limit", &limit.to_string())]);
        }
        if let Some(next) = next {
            query = format!("{query}&{}", form_urlencoded(&[("continue", next)]));
        }
        let read = async {
            let answer = self.open(kind, version, &query).await?;
            whole(answer, "a page of a list", MAX_PAGE_BYTES).await
        };
        let body = in_time(PAGE_TIME, read).await?;
        // Reading of megabytes is not for the thread that serves.
        let (list, bytes) = spawn_blocking(move || read_list(kind, &body))
            .await
            .map_err(|error| ApiError::Unreadable(error.to_string()))??;
        Ok(Page {
            objects: list.items.unwrap_or_default(),
            bytes,
            resource_version: list.metadata.resource_version,
            next: Some(list.metadata.next).filter(|next| !next.is_empty()),
        })
    }

    /// Follows a kind from a version on. The server ends it after `lifetime`.
    pub(super) async fn watch(
        &self,
        kind: Kind,
        version: &str,
        from: &str,
        lifetime: Duration,
    ) -> Result<Watch, ApiError> {
        let seconds = lifetime.as_secs().to_string();
        let query = form_urlencoded(&[
            ("watch", "1"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", from),
            ("timeoutSeconds", &seconds),
        ]);
        let answer = in_time(OPEN_TIME, self.open(kind, version, &query)).await?;
        Ok(Watch {
            answer,
            lines: Lines::up_to(MAX_EVENT_BYTES),
            version: from.to_owned(),
            patience: lifetime + OPEN_TIME,
        })
    }

    async fn open(&self, kind: Kind, version: &str, query: &str) -> Result<Answer, ApiError> {
        let server = self.server.clone();
        let files = spawn_blocking(move || files(&server)).await;
        let files = files.map_err(|error| ApiError::Files(error.to_string()))?;
        let (client, token) = files.map_err(|error| ApiError::Files(format!("{error:#}")))?;
        let base = self.server.url.as_deref().unwrap_or_default();
        let url = format!("{base}{}?{query}", kind.path(version));
        let answer = client.open(&url, Some(token.trim())).await;
        let answer = answer.map_err(|error| {
            ApiError::Unreachable(format!(
                "the API server `{base}` cannot be asked: {error:#}"
            ))
        })?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            status => Err(self.refused(kind, status, answer).await),
        }
    }

    async fn refused(&self, kind: Kind, status: StatusCode, answer: Answer) -> ApiError {
        let retry_after = answer.retry_after();
        let body = answer.whole(MAX_FAILURE_BYTES).await.unwrap_or_default();
        let failure: Failure = serde_json::from_slice(&body).unwrap_or_default();
        let message = cut(failure.message);
        match status {
            StatusCode::UNAUTHORIZED => {
                ApiError::Unauthorized(self.server.token.display().to_string())
            }
            StatusCode::FORBIDDEN => ApiError::Forbidden { kind, message },
            StatusCode::NOT_FOUND => ApiError::Missing,
            StatusCode::GONE => ApiError::Gone(message),
            status => ApiError::Other {
                status: status.as_u16(),
                message,
                retry_after,
            },
        }
    }
}

/// Authorities and token, read anew. Blocking.
fn files(server: &Server) -> anyhow::Result<(Client, String)> {
    use anyhow::Context as _;
    // Whoever could change them would be the API server.
    guarded::check(&server.authorities)?;
    let client = Client::new(&Trust::File(server.authorities.clone()), None)?;
    let token = std::fs::read_to_string(&server.token);
    let path = server.token.display();
    Ok((
        client,
        token
            .with_context(|| format!("cannot read the token `{path}` (`kubernetes.tokenFile`)"))?,
    ))
}

/// What the server tells as it happens.
#[derive(Debug)]
pub(super) struct Watch {
    answer: Answer,
    lines: Lines,
    version: String,
    patience: Duration,
}

impl Watch {
    /// The version up to which everything was told.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// The next change; none when the server has ended the watch.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, ApiError> {
        loop {
            let line = self.lines.next().map_err(|_| ApiError::TooLarge {
                what: "an event of a watch",
                max_bytes: MAX_EVENT_BYTES,
            })?;
            if let Some(line) = line {
                let event = match line.len() > MAX_BRIEF_BYTES {
                    // Reading of megabytes is not for the thread that serves.
                    true => spawn_blocking(move || read_event(&line))
                        .await
                        .map_err(|error| ApiError::Unreadable(error.to_string()))?,
                    false => read_event(&line),
                }?;
                if let Event::Is(object) | Event::Gone(object) | Event::Bookmark(object) = &event
                    && !object.metadata.resource_version.is_empty()
                {
                    self.version.clone_from(&object.metadata.resource_version);
                }
                return Ok(Some(event));
            }
            let piece = in_time(self.patience, async {
                let piece = self.answer.piece().await;
                piece.map_err(|error| ApiError::Unreachable(format!("the watch: {error:#}")))
            });
            match piece.await? {
                Some(piece) => self.lines.push(&piece),
                None => return Ok(None),
            }
        }
    }
}

fn read_event(line: &Bytes) -> Result<Event, ApiError> {
    let event: WatchEvent = parsed(line)?;
    if event.what == What::Error {
        let failure: Failure = serde_json::from_value(event.object).unwrap_or_default();
        let message = cut(failure.message);
        return Err(match failure.code {
            410 => ApiError::Gone(message),
            status => ApiError::Other {
                status,
                message,
                retry_after: None,
            },
        });
    }
    let object: Object = serde_json::from_value(event.object)
        .map_err(|error| ApiError::Unreadable(error.to_string()))?;
    Ok(match event.what {
        What::Bookmark => Event::Bookmark(object),
        What::Deleted => Event::Gone(object),
        _ => Event::Is(object),
    })
}

/// A page, cut to what counts, and how many bytes that is. Something else than a list is none that is empty.
fn read_list(kind: Kind, body: &Bytes) -> Result<(List, usize), ApiError> {
    let mut list: List = parsed(body)?;
    let mut bytes = 0_usize;
    let has_no_name = |one: &Object| one.metadata.name.is_empty();
    let objects = list.items.iter_mut().flatten();
    for object in objects {
        if has_no_name(object) {
            let why = "a list has an object without a name";
            return Err(ApiError::Unreadable(why.into()));
        }
        bytes = bytes.saturating_add(object.cut(kind));
    }
    if list.metadata.resource_version.is_empty() {
        let why = "a list has no `resourceVersion`";
        return Err(ApiError::Unreadable(why.into()));
    }
    Ok((list, bytes))
}

async fn whole(answer: Answer, what: &'static str, max_bytes: usize) -> Result<Bytes, ApiError> {
    let mut answer = answer;
    let mut all = Vec::new();
    loop {
        let piece = answer.piece().await;
        let piece = piece.map_err(|error| ApiError::Unreachable(format!("{error:#}")))?;
        let Some(piece) = piece else {
            return Ok(all.into());
        };
        if all.len().saturating_add(piece.len()) > max_bytes {
            return Err(ApiError::TooLarge { what, max_bytes });
        }
        all.extend_from_slice(&piece);
    }
}

async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let done = timeout(limit, work).await;
    done.unwrap_or_else(|_| {
        let text = format!("the API server does not answer within {limit:?}");
        Err(ApiError::Unreachable(text))
    })
}

fn parsed<T: DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::Unreadable(error.to_string()))
}

fn form_urlencoded(pairs: &[(&str, &str)]) -> String {
    let mut query = ::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs);
    query.finish()
}

/// Somebody else's words.
pub(super) fn cut(text: String) -> String {
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// No object is larger in etcd than 1.5 MiB, and JSON makes no more than twice that of it.
const MAX_EVENT_BYTES: usize = 4 << 20;
const MAX_PAGE_BYTES: usize = 64 << 20;
/// An event of more is read on a thread for it.
const MAX_BRIEF_BYTES: usize = 64 << 10;
const MAX_FAILURE_BYTES: usize = 64 << 10;

const OPEN_TIME: Duration = Duration::from_secs(30);
const PAGE_TIME: Duration = Duration::from_secs(60);
