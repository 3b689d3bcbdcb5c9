//! Who makes a call, and what of it is for others.

use std::sync::Arc;

use tonic::Status;

use crate::{
    access::{Grant, Namespaces},
    job::fair_share::across,
    store::{
        Scope,
        fence::{Fence, Holder},
        rows::{LeaseKey, SourceKey},
    },
};

/// What a request names, before it is known whether its caller may use it: only
/// the [`Caller`] gives it out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<T>(T);

impl<T> Asked<T> {
    pub(crate) fn new(it: T) -> Self {
        Self(it)
    }
}

/// What is of a namespace, or is one.
pub(crate) trait OfNamespace {
    /// Which.
    fn namespace(&self) -> &str;
}

impl OfNamespace for String {
    fn namespace(&self) -> &str {
        self
    }
}

impl OfNamespace for SourceKey {
    fn namespace(&self) -> &str {
        &self.namespace
    }
}

/// Who makes a call.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// `None` where nobody is asked for a token: everything is allowed.
    pub(super) grant: Option<Arc<Grant>>,
}

impl Caller {
    /// Whoever calls where nobody is asked for a token.
    #[cfg(fuzzing)]
    pub(crate) fn of_all() -> Self {
        Self { grant: None }
    }

    /// Who makes this call. A call that did not come through the gate is
    /// refused.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| Status::unauthenticated("nobody knows who makes this call"))
    }

    /// The name of its token, to which its leases are bound.
    pub(crate) fn name(&self) -> Option<&str> {
        self.grant.as_deref().map(|grant| grant.name.as_str())
    }

    /// Where it may look for what a request names by an id.
    pub(crate) fn scope(&self) -> Scope {
        match self.namespaces() {
            None => Scope::All,
            Some([only]) => Scope::One(only.clone()),
            Some(several) => Scope::These(several.to_vec()),
        }
    }

    /// A lease that it says is its own. The statements that write ask whether it
    /// is: the epoch fences one worker from the next, and is no secret.
    pub(crate) fn fence(&self, lease: Asked<LeaseKey>) -> Fence {
        Fence {
            lease: lease.0,
            holder: self.holder(),
        }
    }

    /// What its leases are bound to; `None` where nobody is asked for a token.
    pub(crate) fn holder(&self) -> Option<Arc<Holder>> {
        let holder = self.name().map(|name| Holder {
            name: name.to_owned(),
            namespaces: self.namespaces().map(<[String]>::to_vec),
        });
        holder.map(Arc::new)
    }

    /// The namespaces that it is limited to; `None` where it is not.
    pub(crate) fn namespaces(&self) -> Option<&[String]> {
        match &self.grant.as_deref()?.namespaces {
            Namespaces::All => None,
            Namespaces::These(these) => Some(these),
        }
    }

    /// The priority of the jobs that it queues, for one that it asks for. Only
    /// where its token says so does it count across namespaces.
    pub(crate) fn priority(&self, asked: i16) -> i16 {
        let grant = self.grant.as_deref();
        if grant.is_none_or(|grant| grant.priority_across) {
            return across(asked);
        }
        asked
    }

    /// Whether all namespaces are its own: what it does may concern them all.
    pub(crate) fn is_of_all(&self) -> bool {
        self.namespaces().is_none()
    }

    /// Whether a namespace is one of its own.
    pub(crate) fn may(&self, namespace: &str) -> bool {
        let grant = self.grant.as_deref();
        grant.is_none_or(|grant| grant.namespaces.contain(namespace))
    }

    /// Gives out what is asked for. `PERMISSION_DENIED` where it is of a namespace
    /// that is not the caller's own.
    pub(crate) fn admit<T: OfNamespace>(&self, asked: Asked<T>) -> Result<T, Status> {
        let namespace = asked.0.namespace();
        if self.may(namespace) {
            return Ok(asked.0);
        }
        Err(Status::permission_denied(format!(
            "this token may not use the namespace {namespace:?}"
        )))
    }

    /// `PERMISSION_DENIED` unless all namespaces are its own.
    pub(crate) fn check_all(&self) -> Result<(), Status> {
        if self.is_of_all() {
            return Ok(());
        }
        Err(Status::permission_denied(
            "this is of all namespaces together, and this token may not use all",
        ))
    }

    /// Where a list looks. A token of one namespace means that one where
    /// none is named; one of several has to name it, for no index has the
    /// entries of several in the order of a list.
    pub(crate) fn narrow(&self, namespace: Option<Asked<String>>) -> Result<Scope, Status> {
        match (namespace, self.scope()) {
            (Some(namespace), _) => Ok(Scope::One(self.admit(namespace)?)),
            (None, scope @ (Scope::All | Scope::One(_))) => Ok(scope),
            (None, Scope::These(several)) => Err(Status::permission_denied(format!(
                "name a namespace: this token may use {} and no list of all",
                several.join(", ")
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::access::Role;

    #[test]
    fn a_priority_counts_across_namespaces_only_where_the_token_says_so() {
        let caller = |priority_across| Caller {
            grant: Some(Arc::new(Grant {
                name: "t".to_owned(),
                role: Role::Client,
                namespaces: Namespaces::All,
                priority_across,
            })),
        };
        assert_eq!([0, 9].map(|it| caller(false).priority(it)), [0, 9]);
        assert_eq!([0, 9].map(|it| caller(true).priority(it)), [0, across(9)]);
        let nobody_is_asked = Caller { grant: None };
        assert_eq!(nobody_is_asked.priority(1), across(1));
    }

    #[test]
    fn a_list_is_narrowed_to_what_the_token_may_see() {
        let caller = |namespaces| Caller {
            grant: Some(Arc::new(Grant {
                name: "t".to_owned(),
                role: Role::Client,
                namespaces,
                priority_across: false,
            })),
        };
        let named = |name: &str| Some(Asked::new(name.to_owned()));
        let one_of = |name: &str| Scope::One(name.to_owned());
        let all = caller(Namespaces::All);
        assert_eq!(all.narrow(None).unwrap(), Scope::All);
        assert_eq!(all.narrow(named("x")).unwrap(), one_of("x"));
        let one = caller(Namespaces::These(vec!["a".to_owned()]));
        assert_eq!(one.narrow(None).unwrap(), one_of("a"));
        let two = caller(Namespaces::These(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(two.narrow(named("b")).unwrap(), one_of("b"));
        assert_eq!([all.scope(), one.scope()], [Scope::All, one_of("a")]);
        assert_eq!(
            two.scope(),
            Scope::These(vec!["a".to_owned(), "b".to_owned()])
        );
        for denied in [
            two.narrow(None),
            two.narrow(named("c")),
            one.narrow(named("b")),
        ] {
            assert_eq!(denied.unwrap_err().code(), Code::PermissionDenied);
        }
    }
}
