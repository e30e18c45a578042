//! What stands around spans that wait: each once, however many spans it is for.

use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// What one of them takes besides its bytes.
const OVERHEAD: usize = 96;

/// All of a resource but its scopes, and all of a scope but its spans.
#[derive(Debug)]
pub(super) struct Envelope {
    /// One of [`Envelopes::resources`]: those of the same bytes are one.
    pub(super) resource: Arc<[u8]>,
    pub(super) scope: Box<[u8]>,
}

impl PartialEq for Envelope {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.resource, &other.resource) && self.scope == other.scope
    }
}

impl Eq for Envelope {}

impl Hash for Envelope {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Not the bytes of the resource: many scopes may share a large one.
        Arc::as_ptr(&self.resource).cast::<u8>().hash(state);
        self.scope.hash(state);
    }
}

impl Envelope {
    fn size(&self) -> usize {
        self.scope.len() + OVERHEAD
    }
}

/// Those that are known, with the memory that they take.
#[derive(Debug, Default)]
pub(super) struct Envelopes {
    envelopes: HashSet<Arc<Envelope>>,
    resources: HashSet<Arc<[u8]>>,
    /// With so many more than were in use when it was last looked, it is worth to look again.
    in_use: usize,
    bytes: usize,
}

impl Envelopes {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn resource(&mut self, resource: Vec<u8>) -> Arc<[u8]> {
        if let Some(known) = self.resources.get(resource.as_slice()) {
            return Arc::clone(known);
        }
        let resource: Arc<[u8]> = resource.into();
        self.bytes += resource.len() + OVERHEAD;
        self.resources.insert(Arc::clone(&resource));
        resource
    }

    /// `resource` is from [`Envelopes::resource`].
    pub(super) fn scope(&mut self, resource: &Arc<[u8]>, scope: Vec<u8>) -> Arc<Envelope> {
        let envelope = Envelope {
            resource: Arc::clone(resource),
            scope: scope.into(),
        };
        if let Some(known) = self.envelopes.get(&envelope) {
            return Arc::clone(known);
        }
        let envelope = Arc::new(envelope);
        self.bytes += envelope.size();
        self.envelopes.insert(Arc::clone(&envelope));
        envelope
    }

    /// Whether so many are known that most may be out of use.
    pub(super) fn are_many(&self) -> bool {
        self.envelopes.len() > 64 + 2 * self.in_use
    }

    /// Forgets those that nothing uses.
    pub(super) fn purge(&mut self) {
        let mut freed = 0;
        self.envelopes.retain(|envelope| {
            let is_used = Arc::strong_count(envelope) > 1;
            freed += if is_used { 0 } else { envelope.size() };
            is_used
        });
        self.resources.retain(|resource| {
            let is_used = Arc::strong_count(resource) > 1;
            freed += if is_used { 0 } else { resource.len() + OVERHEAD };
            is_used
        });
        self.bytes -= freed;
        self.in_use = self.envelopes.len();
    }
}
