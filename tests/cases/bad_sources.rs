use crate::support::{Setup, fake_podman, until};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A socket on which somebody deals with each client in some way.
fn socket(dir: &Path, name: &str, deal: fn(std::os::unix::net::UnixStream)) -> PathBuf {
    let path = dir.join(name);
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || deal(client));
        }
    });
    path
}

/// Reads what comes and never answers.
fn hang(mut client: std::os::unix::net::UnixStream) {
    let mut buffer = [0; 4096];
    while client.read(&mut buffer).is_ok_and(|length| length > 0) {}
}

/// Answers with what nobody asked for, without end.
fn babble(mut client: std::os::unix::net::UnixStream) {
    while client.write_all(&[b'\n'; 4096]).is_ok() {}
}

#[test]
fn sources_that_hang_babble_or_are_none_disturb_nobody() {
    let setup = Setup::fixture("healthy").pull_only();
    let dir = setup.dir.0.clone();
    let podman = fake_podman::serve(&dir, "shop", "{}");
    let hanging = socket(&dir, "hanging.sock", hang);
    let babbling = socket(&dir, "babbling.sock", babble);
    let file = dir.join("file.sock");
    std::fs::write(&file, "no socket").unwrap();
    let sources = [
        ("containerd", vec![&hanging, &babbling, &file]),
        ("cri", vec![&hanging, &babbling, &file]),
        ("docker", vec![&hanging, &babbling, &file]),
        ("podman", vec![&podman]),
        ("systemd", vec![&hanging, &babbling, &file]),
    ];
    let lines = sources.iter().map(|(name, paths)| format!("{name} = {paths:?}\n"));
    let mut daemon = setup.set("sources", &lines.collect::<String>()).start();
    daemon.entities_until("the pod that podman knows", |now| {
        now.entities.iter().any(|entity| entity.id.name == "shop" && entity.sources[0] == "podman")
    });
    let failed = until("all others have failed", || {
        assert!(daemon.scrape("/metrics").contains("name=\"shop\""));
        let status = daemon.status().sources;
        let failed: Vec<_> = status.into_iter().filter(|source| source.last_error.is_some()).collect();
        (failed.len() == 12).then_some(failed)
    });
    for source in failed {
        let error = source.last_error.unwrap();
        assert!(error.contains(dir.to_str().unwrap()), "{}: which socket? {error}", source.name);
        assert!(error.len() < 500 && !error.contains('\n'), "{}: {error}", source.name);
    }
    assert_eq!(daemon.stop(), Some(0));
}
