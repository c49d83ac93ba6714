//! Networks of containers, which Docker makes after the container and before its start.

use std::time::Duration;

use tests::case::PATIENCE;
use tests::docker::{Docker, IMAGE};
use tests::{Result, check, check_eq, eventually};

use crate::listed;

listed!(
    a_container_has_its_network_from_its_first_moment_and_is_reached_by_published_ports,
    containers_of_a_network_find_each_other_by_name,
    networks_are_connected_and_disconnected_while_a_container_runs,
);

/// How long a network that is connected later may take to be the guest's.
const LATE: Duration = Duration::from_secs(60);

fn a_container_has_its_network_from_its_first_moment_and_is_reached_by_published_ports(
    docker: &Docker,
) -> Result<()> {
    docker.case(|name| {
        let serve = "ip route; echo served >/tmp/page; exec httpd -f -h /tmp";
        let published = ["run", "--detach", "--name", name, "--runtime", "kata", "--publish", "18080:80"];
        docker.says(published.into_iter().chain([IMAGE, "sh", "-c", serve]))?;
        eventually(PATIENCE, || {
            let page = docker.on_host("busybox wget -q -O - http://172.30.0.1:18080/page")?.exits(0)?.out();
            check!(page == "served\n", "the page is {page:?}");
            Ok(())
        })?;
        let routes = docker.says(["logs", name])?;
        check!(routes.contains("default via 172.30.0.1 dev eth0"), "its first routes were {routes}");
        docker.on_host("busybox wget -q -O - http://127.0.0.1:18080/page")?.exits(0)?;
        docker.says(["exec", name, "ping", "-c", "1", "-w", "20", "172.30.0.1"])?;
        Ok(())
    })
}

fn containers_of_a_network_find_each_other_by_name(docker: &Docker) -> Result<()> {
    docker.says(["network", "create", "--subnet", "172.29.0.0/24", "named"])?;
    docker.says([
        "run",
        "--detach",
        "--name",
        "peer",
        "--network",
        "named",
        "--runtime",
        "runc",
        IMAGE,
        "sleep",
        "1000000",
    ])?;
    docker.case(|name| {
        let look = "nslookup peer && ping -c 1 -w 20 peer && ! nslookup nobody";
        let run_it =
            ["run", "--name", name, "--runtime", "kata", "--network", "named", IMAGE, "sh", "-c", look];
        let said = docker.run(run_it, "")?.exits(0)?.out();
        check!(said.contains("Address: 172.29.0.2"), "the name's address is not in {said}");
        Ok(())
    })?;
    docker.says(["rm", "--force", "peer"])?;
    docker.says(["network", "rm", "named"]).map(drop)
}

fn networks_are_connected_and_disconnected_while_a_container_runs(docker: &Docker) -> Result<()> {
    docker.says(["network", "create", "--subnet", "172.31.0.0/24", "other"])?;
    docker.case(|name| {
        let run_it = ["run", "--detach", "--name", name, "--runtime", "kata", IMAGE, "sleep", "1000000"];
        docker.says(run_it)?;
        let is_reached =
            |gateway: &str| docker.says(["exec", name, "ping", "-c", "1", "-w", "20", gateway]).map(drop);
        let has_addresses = |wanted: &[&str]| {
            eventually(LATE, || {
                let shown = docker.says(["exec", name, "ip", "-o", "-4", "addr"])?;
                let words =
                    shown.split_whitespace().filter(|word| word.starts_with("172.") && word.contains('/'));
                let networks: Vec<_> = words.filter_map(|word| word.get(..7)).collect();
                check_eq!(networks, wanted, "networks of its addresses");
                Ok(())
            })
        };
        let default_is = |gateway: &str| {
            eventually(LATE, || {
                let routes = docker.says(["exec", name, "ip", "route"])?;
                check!(routes.contains(&format!("default via {gateway}")), "its routes are {routes}");
                Ok(())
            })
        };
        is_reached("172.30.0.1")?;
        docker.says(["network", "connect", "other", name])?;
        has_addresses(&["172.30.", "172.31."])?;
        is_reached("172.31.0.1")?;
        // What the machine was started with may go and come back, too.
        docker.says(["network", "disconnect", "bridge", name])?;
        default_is("172.31.0.1")?;
        docker.says(["network", "connect", "bridge", name])?;
        default_is("172.30.0.1")?;
        is_reached("172.30.0.1")?;
        docker.says(["network", "disconnect", "other", name])?;
        has_addresses(&["172.30."])?;
        Ok(())
    })?;
    docker.says(["network", "rm", "other"]).map(drop)
}
