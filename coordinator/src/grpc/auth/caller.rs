//! Who makes a call, and what of it is for others.

use std::sync::Arc;

use tonic::Status;

use crate::access::{Grant, Namespaces};

/// Who makes a call.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// `None` where nobody is asked for a token: everything is allowed.
    pub(super) grant: Option<Arc<Grant>>,
}

impl Caller {
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

    /// The namespaces that it is limited to; `None` where it is not.
    pub(crate) fn namespaces(&self) -> Option<&[String]> {
        match &self.grant.as_deref()?.namespaces {
            Namespaces::All => None,
            Namespaces::These(these) => Some(these),
        }
    }

    /// Whether a namespace is one of its own.
    pub(crate) fn may(&self, namespace: &str) -> bool {
        let grant = self.grant.as_deref();
        grant.is_none_or(|grant| grant.namespaces.contain(namespace))
    }

    /// `PERMISSION_DENIED` for a namespace that is not its own.
    pub(crate) fn check(&self, namespace: &str) -> Result<(), Status> {
        if self.may(namespace) {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "this token may not use the namespace {namespace:?}"
        )))
    }

    /// `PERMISSION_DENIED` unless all namespaces are its own.
    pub(crate) fn check_all(&self) -> Result<(), Status> {
        if self.namespaces().is_none() {
            return Ok(());
        }
        Err(Status::permission_denied(
            "this is of all namespaces together, and this token may not use all",
        ))
    }

    /// The namespace of a list. A token of one namespace means that one where
    /// none is named; one of several has to name it, for no index has the
    /// entries of several in the order of a list.
    pub(crate) fn narrow(&self, namespace: Option<String>) -> Result<Option<String>, Status> {
        match (namespace, self.namespaces()) {
            (Some(namespace), _) => {
                self.check(&namespace)?;
                Ok(Some(namespace))
            }
            (None, None) => Ok(None),
            (None, Some([only])) => Ok(Some(only.clone())),
            (None, Some(several)) => Err(Status::permission_denied(format!(
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
    fn a_list_is_narrowed_to_what_the_token_may_see() {
        let caller = |namespaces| Caller {
            grant: Some(Arc::new(Grant {
                name: "t".to_owned(),
                role: Role::Client,
                namespaces,
            })),
        };
        let named = |name: &str| Some(name.to_owned());
        let all = caller(Namespaces::All);
        assert_eq!(all.narrow(None).unwrap(), None);
        assert_eq!(all.narrow(named("x")).unwrap(), named("x"));
        let one = caller(Namespaces::These(vec!["a".to_owned()]));
        assert_eq!(one.narrow(None).unwrap(), named("a"));
        let two = caller(Namespaces::These(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(two.narrow(named("b")).unwrap(), named("b"));
        for denied in [
            two.narrow(None),
            two.narrow(named("c")),
            one.narrow(named("b")),
        ] {
            assert_eq!(denied.unwrap_err().code(), Code::PermissionDenied);
        }
    }
}
