//! gRPC over TCP in the locked-down service, as docs/systemd.md tells.

use std::path::Path;

use nestd_tests::{Authority, project};

use crate::machine::Machine;

#[test]
#[ignore = "tests/systemd.sh runs it"]
fn the_documented_drop_in_serves_tcp_with_keys_that_only_root_has() {
    let machine =
        Machine::with_nestd("access.use = ['cert:tablet']\naccess.observe = ['cert:tablet']\n");
    let docs = std::fs::read_to_string(project().join("docs/systemd.md")).unwrap();
    let (_, block) = docs.split_once("20-tcp.conf\n").unwrap();
    let (drop_in, _) = block.split_once("```").unwrap();
    let here = drop_in.replace("192.168.7.1:", "127.0.0.1:").replace("192.168.7.0/24", "localhost");
    machine.write("/etc/systemd/system/nestd.service.d/20-tcp.conf", &here);

    let authority = Authority::default();
    let [certificate, key] = authority.signs("nestd", "IP:127.0.0.1");
    let client = authority.client("tablet", "DNS:tablet");
    let copy = |from: &Path, to: &str| machine.write(to, &std::fs::read_to_string(from).unwrap());
    copy(&certificate, "/etc/nestd/tls/server.crt");
    copy(&key, "/etc/nestd/tls/server.key");
    copy(&authority.ca(), "/etc/nestd/tls/client-ca.crt");
    copy(&client.certificate, "/tmp/tablet.crt");
    copy(&client.key, "/tmp/tablet.key");
    machine.run(&["chmod", "-R", "go=", "/etc/nestd/tls"]);
    machine.run(&["systemctl", "daemon-reload"]);
    machine.start();

    let key = machine.by("nestd", &["cat", "/etc/nestd/tls/server.key"]);
    assert!(!key.status.success(), "the daemon's user cannot read the file itself");
    let nestctl = "nestctl --server https://127.0.0.1:7878 --ca /etc/nestd/tls/client-ca.crt";
    let with = format!("{nestctl} --certificate /tmp/tablet.crt --key /tmp/tablet.key ask hello");
    assert!(!machine.shell(&with).trim().is_empty());
}
