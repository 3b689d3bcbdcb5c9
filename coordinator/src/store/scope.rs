//! Whose rows a query may read or change.

use sqlx::{Postgres, QueryBuilder};

/// The namespaces that a query may read or change rows of. Every query that a
/// request reaches by an id, or that reads more than one namespace, takes one
/// and has it in its conditions.
///
/// A request's is made by the gate, of what its token allows and what the
/// request names; nobody else in `grpc` makes any.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize)]
pub enum Scope {
    /// All namespaces.
    All,
    /// This one.
    One(String),
    /// These, and no others.
    These(Vec<String>),
}

impl Scope {
    /// The only namespace, where it is one.
    pub fn one(&self) -> Option<&str> {
        match self {
            Self::One(one) => Some(one),
            Self::All | Self::These(_) => None,
        }
    }

    /// Whether a namespace is within it.
    pub fn has(&self, namespace: &str) -> bool {
        self.namespaces()
            .is_none_or(|these| these.iter().any(|it| it == namespace))
    }

    /// The namespaces, as conditions take them: `NULL` for all.
    pub(super) fn namespaces(&self) -> Option<&[String]> {
        match self {
            Self::All => None,
            Self::One(one) => Some(std::slice::from_ref(one)),
            Self::These(these) => Some(these),
        }
    }

    /// Adds the condition that `column` is within the scope. It is that of one
    /// value where it can be, for an index gives rows in their order then.
    pub(super) fn push(&self, query: &mut QueryBuilder<Postgres>, column: &'static str) {
        match self {
            Self::All => {}
            Self::One(one) => {
                query.push(" AND ").push(column).push(" = ");
                query.push_bind(one.clone());
            }
            Self::These(these) => {
                query.push(" AND ").push(column).push(" = ANY(");
                query.push_bind(these.clone()).push(")");
            }
        }
    }
}

/// The condition that a namespace is within the scope bound to a parameter, by
/// [`Scope::namespaces`].
macro_rules! in_scope {
    ($namespace:literal, $parameter:literal) => {
        concat!(
            "(",
            $parameter,
            "::text[] IS NULL OR ",
            $namespace,
            " = ANY(",
            $parameter,
            "))"
        )
    };
}
pub(super) use in_scope;
