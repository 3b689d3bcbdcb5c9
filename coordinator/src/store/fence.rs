//! What every write of a worker is fenced by: the lease that it names, and whose
//! it must be (law 3).

use std::sync::Arc;

use super::{
    Scope, Store, StoreError,
    rows::{Job, LeaseKey},
};

/// A lease, as a worker names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The lease.
    pub lease: LeaseKey,
    /// Who says that it is theirs; `None` where nobody is asked for a token.
    pub holder: Option<Arc<Holder>>,
}

/// Whose a lease must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The name of the token that the job was claimed with.
    pub name: String,
    /// The namespaces that the token is limited to; `None` where it is not.
    pub namespaces: Option<Vec<String>>,
}

impl From<LeaseKey> for Fence {
    /// The lease, whoever took it.
    fn from(lease: LeaseKey) -> Self {
        Self {
            lease,
            holder: None,
        }
    }
}

impl From<&Self> for Fence {
    fn from(fence: &Self) -> Self {
        fence.clone()
    }
}

/// Whether a job `j` was claimed with the token of this name and is in one of
/// these namespaces. Goes with job and epoch into the one statement that writes:
/// what is looked up before it says nothing of an epoch that is yet to come.
/// Both null: whoever claimed it.
macro_rules! is_of {
    ($name:literal, $namespaces:literal) => {
        concat!(
            "(",
            $name,
            " IS NULL OR j.claimed_by = ",
            $name,
            ") AND (",
            $namespaces,
            " IS NULL OR j.namespace = ANY(string_to_array(",
            $namespaces,
            ", ',')))"
        )
    };
}
pub(super) use is_of;

impl Fence {
    /// What [`is_of`] takes for the name.
    pub(super) fn name(&self) -> Option<&str> {
        self.holder.as_deref().map(|holder| holder.name.as_str())
    }

    /// What [`is_of`] takes for the namespaces: one text, for there are no arrays
    /// of arrays of different lengths. No namespace has a comma.
    pub(super) fn namespaces(&self) -> Option<String> {
        let namespaces = self.holder.as_deref()?.namespaces.as_ref()?;
        Some(namespaces.join(","))
    }

    /// Refuses who names the lease of another: what a statement that was fenced
    /// off is told by.
    fn check(&self, job: &Job) -> Result<(), StoreError> {
        let Some(holder) = self.holder.as_deref() else {
            return Ok(());
        };
        let foreign = |these: &Vec<String>| !these.contains(&job.namespace);
        if holder.namespaces.as_ref().is_some_and(foreign) {
            return Err(StoreError::no_job(job.id));
        }
        if job.epoch == self.lease.epoch && job.claimed_by.as_deref() != Some(&holder.name) {
            return Err(StoreError::Denied(format!(
                "the lease of job {} was not taken with this token",
                job.id
            )));
        }
        Ok(())
    }
}

/// What [`is_of`] takes of several fences, as columns.
pub(super) fn holders<'a>(
    fences: impl Iterator<Item = &'a Fence>,
) -> (Vec<Option<&'a str>>, Vec<Option<String>>) {
    fences
        .map(|fence| (fence.name(), fence.namespaces()))
        .unzip()
}

impl Store {
    /// The job of a lease, held or not, for whoever took the lease.
    pub(super) async fn job_of(&self, fence: &Fence) -> Result<Job, StoreError> {
        let job = self.job(&Scope::All, fence.lease.job_id).await?;
        fence.check(&job)?;
        Ok(job)
    }
}
