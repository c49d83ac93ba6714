//! Pods' networks of other kinds, between the same addresses.

use serde_json::json;

use super::{MAC, Namespace, PATIENCE, PodNetwork};
use crate::command::run;
use crate::{Context, Result, check, eventually};

/// Where Debian has the network plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// Whether this machine's kernel has interfaces of `kind`, as `ip link add type` names it, on others.
pub fn kernel_has(kind: &str) -> bool {
    let tried = || {
        let namespace = Namespace::new()?;
        namespace.says("ip link add up0 type veth peer name up1")?;
        namespace.says(&format!("ip link add link up0 name tried type {kind}"))
    };
    tried().is_ok()
}

impl PodNetwork {
    /// What the network plugin `kind` (macvlan, ipvlan) makes on an interface of the pod's node, whose other end is
    /// the peer.
    pub fn by_plugin(kind: &str) -> Result<PodNetwork> {
        let (pod, node, peer) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
        node.says(&format!(
            "ip link add up0 mtu 1400 type veth peer name peer0 mtu 1400 netns {}",
            peer.path()
        ))?;
        node.says("ip link set up0 up")?;
        pod.says("ip link set lo up")?;
        has_the_peers_addresses(&peer)?;
        let config = json!({
            "cniVersion": "0.4.0", "name": "pods", "type": kind, "master": "up0",
            "ipam": {
                "type": "static",
                "addresses": [
                    {"address": "10.7.0.2/24", "gateway": "10.7.0.1"},
                    {"address": "fd07::2/64", "gateway": "fd07::1"}
                ],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
            }
        });
        // A plugin reads to the end of its input.
        let mut plugin = node.command("sh -c");
        plugin.arg(format!("printf %s '{config}' | {PLUGINS}/{kind}"));
        plugin.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "pod").env("CNI_PATH", PLUGINS);
        plugin.env("CNI_NETNS", pod.path()).env("CNI_IFNAME", "eth0");
        run(&mut plugin, PATIENCE)?.exits(0).context(kind)?;
        Ok(PodNetwork { pod, peer, _node: Some(node) })
    }

    /// A tap with the pod's addresses, which the pod's node joins with a veth to the peer, by filters of its own.
    pub fn by_tap() -> Result<PodNetwork> {
        let (pod, peer) = (Namespace::new()?, Namespace::new()?);
        pod.says(&format!(
            "ip link add up0 mtu 1400 type veth peer name peer0 mtu 1400 netns {}",
            peer.path()
        ))?;
        has_the_peers_addresses(&peer)?;
        for words in [
            "ip tuntap add dev eth0 mode tap vnet_hdr multi_queue",
            &format!("ip link set eth0 address {MAC} mtu 1400 up"),
            "ip link set up0 addrgenmode none up",
            "ip link set lo up",
            "ip addr add 10.7.0.2/24 dev eth0",
            "ip addr add fd07::2/64 dev eth0 nodad",
            "ip route add default via 10.7.0.1",
            "ip -6 route add default via fd07::1",
        ] {
            pod.says(words)?;
        }
        // The kernel takes a moment to see that there is another end.
        eventually(PATIENCE, || {
            let up = pod.says("ip link show up0")?;
            check!(up.contains("state UP"), "up0 is not up: {up}");
            Ok(())
        })?;
        for (from, to) in [("up0", "eth0"), ("eth0", "up0")] {
            pod.says(&format!("tc qdisc add dev {from} ingress"))?;
            let filter = format!("tc filter add dev {from} parent ffff: protocol all u32 match u8 0 0");
            pod.says(&format!("{filter} action mirred egress redirect dev {to}"))?;
        }
        Ok(PodNetwork { pod, peer, _node: None })
    }
}

fn has_the_peers_addresses(peer: &Namespace) -> Result<()> {
    for words in [
        "ip link set peer0 up",
        "ip addr add 10.7.0.1/24 dev peer0",
        "ip addr add fd07::1/64 dev peer0 nodad",
    ] {
        peer.says(words)?;
    }
    Ok(())
}
