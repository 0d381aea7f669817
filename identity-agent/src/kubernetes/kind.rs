//! The kinds of objects that are followed. Their list is what `deploy/kubernetes` gives rights for.

/// One kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Who is where: labels, account and addresses.
    Pod,
    /// The accounts that there are.
    ServiceAccount,
    /// Their labels.
    Namespace,
    /// A policy of Kubernetes.
    NetworkPolicy,
    /// A policy of Istio.
    PeerAuthentication,
    /// A policy of Istio.
    AuthorizationPolicy,
    /// A policy of Istio.
    RequestAuthentication,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Pod,
        Self::ServiceAccount,
        Self::Namespace,
        Self::NetworkPolicy,
        Self::PeerAuthentication,
        Self::AuthorizationPolicy,
        Self::RequestAuthentication,
    ];

    /// As documents name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::ServiceAccount => "ServiceAccount",
            Self::Namespace => "Namespace",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::RequestAuthentication => "RequestAuthentication",
        }
    }

    /// As paths and roles name it.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Pod => "pods",
            Self::ServiceAccount => "serviceaccounts",
            Self::Namespace => "namespaces",
            Self::NetworkPolicy => "networkpolicies",
            Self::PeerAuthentication => "peerauthentications",
            Self::AuthorizationPolicy => "authorizationpolicies",
            Self::RequestAuthentication => "requestauthentications",
        }
    }

    /// The group of the API.
    pub fn group(self) -> &'static str {
        match self {
            Self::Pod | Self::ServiceAccount | Self::Namespace => "",
            Self::NetworkPolicy => "networking.k8s.io",
            _ => "security.istio.io",
        }
    }

    /// The versions that are asked for, in this order. Before 1.22 Istio serves some of its kinds as
    /// `v1beta1` alone.
    pub(super) fn versions(self) -> &'static [&'static str] {
        match self.may_be_missing() {
            true => &["v1", "v1beta1"],
            false => &["v1"],
        }
    }

    /// May a cluster not have it? Istio's kinds are there when somebody has installed them.
    pub(super) fn may_be_missing(self) -> bool {
        self.group() == "security.istio.io"
    }

    /// Where the API server lists all of them.
    pub(super) fn path(self, version: &str) -> String {
        let resource = self.resource();
        match self.group() {
            "" => format!("/api/{version}/{resource}"),
            group => format!("/apis/{group}/{version}/{resource}"),
        }
    }

    /// The version that documents of it have.
    pub(super) fn api_version(self) -> String {
        match self.group() {
            "" => "v1".to_owned(),
            group => format!("{group}/v1"),
        }
    }
}
