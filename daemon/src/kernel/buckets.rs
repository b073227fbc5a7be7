//! The token buckets of all BPF objects, in one map: of most objects they are few.

use super::bpf::{Refused, delete_where, refused};
use libbpf_rs::libbpf_sys::bpf_map_create_opts;
use libbpf_rs::{MapHandle, MapType};
use netskoop_bpf::netns::types::{bucket, bucket_key};
use netskoop_bpf::plain;
use std::sync::Arc;

/// Buckets at most, on a small node. Each is for one kind of one object's events in one namespace.
const ROOM: u32 = 4096;

/// The map. Made before any object is loaded, then given to each.
#[derive(Clone, Debug)]
pub struct Buckets(Arc<MapHandle>);

impl Buckets {
    /// Makes it for a node with so many namespaces.
    pub fn new(namespaces: usize) -> Result<Buckets, Refused> {
        super::bpf::quiet();
        let opts = bpf_map_create_opts {
            sz: size_of::<bpf_map_create_opts>() as _,
            ..bpf_map_create_opts::default()
        };
        let room = ROOM.saturating_mul(super::load::times_larger(namespaces));
        let (key, value) = (size_of::<bucket_key>() as u32, size_of::<bucket>() as u32);
        // The name is that of the variable in `netskoop.bpf.h`: generated code looks a reused map up by it.
        let map = MapHandle::create(MapType::Hash, Some("buckets"), key, value, room, &opts)
            .map_err(|error| refused("make the map of token buckets", &error))?;
        Ok(Buckets(Arc::new(map)))
    }

    /// Its map.
    pub fn map(&self) -> &MapHandle {
        &self.0
    }

    /// Deletes those of the object with that number, in namespaces that are gone.
    pub(super) fn delete(&self, number: u16, gone: impl Fn(u32) -> bool) -> std::io::Result<()> {
        let of_it = |key: &[u8]| namespace_of(key, number).is_some_and(&gone);
        delete_where([self.map()].into_iter(), of_it)
    }
}

/// The inode of a bucket's namespace, if it is one of the object with that number.
fn namespace_of(key: &[u8], number: u16) -> Option<u32> {
    plain::read::<bucket_key>(key).filter(|key| key.probe == number).map(|key| key.netns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_of_one_object() {
        let (kind, number) = (1_u16.to_ne_bytes(), 7_u16.to_ne_bytes());
        let key = [&4_026_531_840_u32.to_ne_bytes()[..], &kind, &number].concat();
        assert_eq!(namespace_of(&key, 7), Some(4_026_531_840));
        assert_eq!(namespace_of(&key, 1), None);
        assert_eq!(namespace_of(&key[..4], 7), None);
    }
}
