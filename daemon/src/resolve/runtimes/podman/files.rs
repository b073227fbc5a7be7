//! Podman's state files: which containers there are (`containers.json`), what each is (`config.json`, the specification
//! that the OCI runtime got) and its first process (`pidfile`). Labels and addresses are only in podman's database, so
//! that they are not known here. inotify tells of changes; everything is read again once a minute.

use super::listens;
use super::watches::{Places, Touched, Watches};
use crate::resolve::book::{MAX_WORKLOADS, Wanted};
use crate::resolve::cgroup::{self, CgroupOwner};
use crate::resolve::runtimes::{Context, SourceError, docker};
use crate::resolve::scan;
use crate::resolve::workload::{Pod, Role, Workload};
use rustc_hash::{FxHashMap, FxHashSet};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Sizes of files at most.
const MAX_LIST: u64 = 32 << 20;
const MAX_CONFIG: u64 = 4 << 20;
const MAX_PIDFILE: u64 = 32;
/// Everything is read again, in case something was not told.
const READ_AGAIN: Duration = Duration::from_secs(60);
/// A directory of a container that has still to be made is looked for so often, and so many times.
const LOOK: Duration = Duration::from_millis(50);
const LOOKS: u32 = 40;
/// A disk that does not answer for so long is told of.
const PATIENCE: Duration = Duration::from_secs(10);

/// Follows the files until somebody listens at the socket.
pub(super) async fn follow(context: &mut Context, storage: &Path, socket: &Path) -> Result<(), SourceError> {
    let places = Places {
        storage: storage.to_owned(),
        run: context.run.join("containers/storage/overlay-containers"),
        exits: context.run.join("libpod/exits"),
    };
    let failed = |error: std::io::Error| SourceError(format!("cannot watch {}: {error}", storage.display()));
    // Before the first look: nothing that happens in between is missed.
    let watches = Watches::new(&places).map_err(failed)?;
    let files = Arc::new(Files { places, proc: context.proc.clone() });
    let mut following =
        Following { files, watches, known: FxHashMap::default(), unwatched: FxHashMap::default() };
    following.read(context, Touched { all: true, growing: true, ..Touched::default() }).await?;
    context.reporter.connected(&format!("the files in {}", storage.display()));
    let mut again = Instant::now() + READ_AGAIN;
    loop {
        let look = match following.unwatched.is_empty() {
            true => again,
            false => Instant::now() + LOOK,
        };
        let touched = tokio::select! {
            touched = following.watches.touched() => {
                context.reporter.event();
                touched.map_err(failed)?
            }
            Some(wanted) = context.questions.recv() => match wanted {
                Wanted::Container(id) => Touched { containers: FxHashSet::from_iter([id]), ..Touched::default() },
                _ => continue,
            },
            () = tokio::time::sleep_until(look.min(again)) => {
                let all = Instant::now() >= again;
                let containers = following.unwatched.keys().cloned().collect();
                Touched { all, containers, ..Touched::default() }
            }
        };
        if touched.all {
            again = Instant::now() + READ_AGAIN;
            if socket.exists() && listens(socket).await {
                return Ok(());
            }
        }
        following.read(context, touched).await?;
    }
}

/// What is known while the files are followed.
struct Following {
    files: Arc<Files>,
    watches: Watches,
    known: FxHashMap<String, Arc<Listed>>,
    /// Containers whose directory has still to be made, with the looks that are left.
    unwatched: FxHashMap<String, u32>,
}

impl Following {
    /// Reads what was touched.
    async fn read(&mut self, context: &Context, touched: Touched) -> Result<(), SourceError> {
        let mut look = touched.containers;
        if touched.list || touched.all {
            let files = Arc::clone(&self.files);
            let listed = off_thread(context, move || files.list()).await??;
            let changed = listed.iter().filter(|(id, new)| self.known.get(*id) != Some(new));
            look.extend(changed.map(|(id, _)| id.clone()));
            let gone = self.known.keys().filter(|id| !listed.contains_key(*id));
            gone.for_each(|id| context.reporter.remove(id));
            self.known = listed;
        }
        if touched.all {
            look = self.known.keys().cloned().collect();
        }
        self.unwatched.retain(|id, _| self.known.contains_key(id));
        let look: Vec<Arc<Listed>> = look.iter().filter_map(|id| self.known.get(id).cloned()).collect();
        look.iter().for_each(|listed| self.watch(context, &listed.id, touched.growing));
        let files = Arc::clone(&self.files);
        let read = move || look.into_iter().map(|listed| (files.look(&listed), listed)).collect();
        let looked: Vec<(Option<Workload>, Arc<Listed>)> = off_thread(context, read).await?;
        if touched.all {
            context.reporter.replace(looked.into_iter().filter_map(|(workload, _)| workload).collect());
            return Ok(());
        }
        for (workload, listed) in looked {
            match workload {
                Some(workload) => context.reporter.put(workload),
                None => context.reporter.remove(&listed.id),
            }
        }
        Ok(())
    }

    fn watch(&mut self, context: &Context, id: &str, growing: bool) {
        match self.watches.container(id) {
            Ok(true) => drop(self.unwatched.remove(id)),
            // One that was not started since the boot has none; its directory is told of when it is made.
            Ok(false) if growing => drop(self.unwatched.insert(id.to_owned(), LOOKS)),
            Ok(false) => {
                if let Some(left) = self.unwatched.get_mut(id) {
                    *left -= 1;
                }
                self.unwatched.retain(|_, left| *left > 0);
            }
            Err(error) => {
                self.unwatched.remove(id);
                context.reporter.stumbled(&format!(
                    "cannot watch {}/{id}: {error}; it is looked at once a minute",
                    self.files.places.run.display()
                ));
            }
        }
    }
}

/// Reads files on another thread: a disk may hang.
async fn off_thread<T: Send + 'static>(
    context: &Context,
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SourceError> {
    let mut reading = tokio::task::spawn_blocking(read);
    let early = tokio::time::timeout(PATIENCE, &mut reading).await;
    let done = match early {
        Ok(done) => done,
        Err(_) => {
            let sentence =
                format!("reading {} takes longer than {} s", context.path.display(), PATIENCE.as_secs());
            context.reporter.failed(&sentence);
            // Another try would hang as well, and there would be more and more of them.
            let done = reading.await;
            context.reporter.connected(&format!("the files in {}", context.path.display()));
            done
        }
    };
    done.map_err(|error| SourceError(format!("reading podman's files ended early: {error}")))
}

/// A container in `containers.json`.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    id: String,
    name: String,
    image: String,
}

#[derive(Deserialize)]
struct RawListed {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    /// JSON again.
    #[serde(default)]
    metadata: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    #[serde(rename = "image-name")]
    image: String,
}

/// The specification of a container, as far as it is of use.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    hostname: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
    linux: Linux,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    cgroups_path: String,
    namespaces: Option<Vec<SpecNamespace>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SpecNamespace {
    #[serde(rename = "type")]
    kind: String,
    path: Option<PathBuf>,
}

/// Set on the members of a pod: the container that holds the pod's namespaces.
const SANDBOX: &str = "io.kubernetes.cri-o.SandboxID";

/// Reads the files.
struct Files {
    places: Places,
    proc: PathBuf,
}

impl Files {
    fn list(&self) -> Result<FxHashMap<String, Arc<Listed>>, SourceError> {
        let path = self.places.storage.join("containers.json");
        let text = match read(&path, MAX_LIST) {
            Ok(text) => text,
            // It comes with the first container.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(FxHashMap::default()),
            Err(error) => return Err(SourceError(format!("cannot read {}: {error}", path.display()))),
        };
        let listed: Vec<RawListed> = serde_json::from_slice(&text)
            .map_err(|error| SourceError(format!("{} cannot be used: {error}", path.display())))?;
        let plain = listed.into_iter().filter(|raw| is_id(&raw.id)).take(MAX_WORKLOADS);
        Ok(plain.map(|raw| (raw.id.clone(), Arc::new(raw.into()))).collect())
    }

    /// A container, if it runs.
    fn look(&self, listed: &Listed) -> Option<Workload> {
        let id = &listed.id;
        let pid = self.places.run.join(id).join("userdata/pidfile");
        let pid: i32 = std::str::from_utf8(&read(&pid, MAX_PIDFILE).ok()?).ok()?.trim().parse().ok()?;
        // The file stays when the process ends, and then somebody else may have the number.
        let owner = cgroup::owner(&scan::cgroup(&self.proc, pid)?)?;
        if !matches!(owner, CgroupOwner::Container(containers) if containers.own_id() == id) {
            return None;
        }
        let config = self.config(id).unwrap_or_default();
        let mut annotations = config.annotations.clone().unwrap_or_default();
        annotations.retain(|key, _| !docker::is_podman_s_own(key));
        let (pod, role) = self.pod(id, &config).unzip();
        let namespaces = config.linux.namespaces.unwrap_or_default();
        let netns = namespaces.into_iter().find(|namespace| namespace.kind == "network");
        Some(Workload {
            id: id.as_str().into(),
            role: role.unwrap_or_default(),
            name: listed.name.clone(),
            pod,
            image: listed.image.clone(),
            pid: Some(pid),
            // A path through another process is of no use once that has ended.
            netns: netns.and_then(|netns| netns.path).filter(|path| !path.starts_with("/proc")),
            annotations: annotations.into(),
            ..Workload::default()
        })
    }

    fn config(&self, id: &str) -> Option<Config> {
        let text = read(&self.places.storage.join(id).join("userdata/config.json"), MAX_CONFIG).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The pod of a container. Its id is part of the cgroup's path; its name is the host name that the pod's containers
    /// share, unless another was asked for.
    fn pod(&self, id: &str, config: &Config) -> Option<(Pod, Role)> {
        let parts = config.linux.cgroups_path.split(['/', ':', '.', '_', '-']);
        let uid = parts.into_iter().find(|part| is_id(part) && *part != id)?.to_owned();
        let sandbox = config.annotations.as_ref().and_then(|all| all.get(SANDBOX)).filter(|id| is_id(id));
        let (name, role) = match sandbox.filter(|sandbox| *sandbox != id) {
            Some(sandbox) => (self.config(sandbox)?.hostname, Role::Container),
            None => (config.hostname.clone(), Role::Sandbox),
        };
        // A container in a pod that shares nothing has a host name of its own: its id.
        let name = name.filter(|name| !name.is_empty() && !id.starts_with(name.as_str()))?;
        Some((Pod { namespace: String::new(), name, uid }, role))
    }
}

impl From<RawListed> for Listed {
    fn from(raw: RawListed) -> Listed {
        let metadata = raw.metadata.and_then(|text| serde_json::from_str::<Metadata>(&text).ok());
        Listed {
            id: raw.id,
            name: raw.names.unwrap_or_default().into_iter().next().unwrap_or_default(),
            image: metadata.unwrap_or_default().image,
        }
    }
}

fn is_id(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A whole file of at most so many bytes.
fn read(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(std::io::Error::other(format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}
