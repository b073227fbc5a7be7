//! What programs hold of an RDMA device, over netlink (`rdma/rdma_netlink.h`).

use super::message::{Message, attribute, attributes, text, u64_at};

/// `RDMA_NLDEV_CMD_RES_GET` of the client `RDMA_NL_NLDEV`, as a dump: the resources of all devices.
pub const GET_RESOURCES: u16 = (5 << 10) | 9;

/// Resources of a device at most; kernels of today tell seven.
const MAX_RESOURCES: usize = 64;

/// Reads a message: hands device, name of the resource and how many are held to `put`.
pub fn resources(message: &Message<'_>, mut put: impl FnMut(&[u8], &[u8], u64)) {
    const DEVICE_NAME: u16 = 2;
    const SUMMARY: u16 = 15;
    const ENTRY: u16 = 16;
    const ENTRY_NAME: u16 = 17;
    const ENTRY_NOW: u16 = 18;
    let (device, summary) = (attribute(message.body, DEVICE_NAME), attribute(message.body, SUMMARY));
    let (Some(device), Some(summary)) = (device.map(text), summary) else { return };
    let entries = attributes(summary).filter(|(kind, _)| *kind == ENTRY).take(MAX_RESOURCES);
    for (_, entry) in entries {
        let now = attribute(entry, ENTRY_NOW).and_then(|now| u64_at(now, 0));
        if let (Some(name), Some(now)) = (attribute(entry, ENTRY_NAME).map(text), now) {
            put(device, name, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::put;
    use super::*;

    fn entry(name: &[u8], now: &[u8]) -> Vec<u8> {
        let (mut entry, mut out) = (vec![], vec![]);
        put(&mut entry, 17, name);
        put(&mut entry, 18, now);
        put(&mut out, 0x8000 | 16, &entry);
        out
    }

    #[test]
    fn resources_of_a_device() {
        let all =
            [entry(b"pd\0", &3_u64.to_ne_bytes()), entry(b"cut", &[1]), entry(b"qp\0", &7_u64.to_ne_bytes())];
        let mut body = vec![];
        put(&mut body, 1, &[0; 4]);
        put(&mut body, 2, b"mlx5_0\0");
        put(&mut body, 0x8000 | 15, &all.concat());
        let message = Message { kind: GET_RESOURCES, flags: 0, sequence: 0, body: &body };
        let read = |message: &Message<'_>| {
            let mut found = vec![];
            resources(message, |device, name, held| found.push((device.to_vec(), name.to_vec(), held)));
            found
        };
        let row = |name: &[u8], held| (b"mlx5_0".to_vec(), name.to_vec(), held);
        assert_eq!(read(&message), [row(b"pd", 3), row(b"qp", 7)]);
        assert_eq!(read(&Message { body: &body[..8], ..message }), []);
    }
}
