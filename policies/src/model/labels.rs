//! Label selectors of Kubernetes.

use std::collections::BTreeMap;

pub(crate) type Labels = BTreeMap<String, String>;

/// `matchLabels` and `matchExpressions`, all of which must hold. Empty: selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LabelSelector {
    pub(crate) equal: Labels,
    pub(crate) expressions: Vec<Expression>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expression {
    pub(crate) key: String,
    pub(crate) operator: Operator,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl LabelSelector {
    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        contains(labels, &self.equal) && self.expressions.iter().all(|one| one.matches(labels))
    }
}

impl Expression {
    /// `NotIn` and `DoesNotExist` hold where the key is absent.
    fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// Are all of `wanted` among `labels`?
pub(crate) fn contains(labels: &Labels, wanted: &Labels) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}
