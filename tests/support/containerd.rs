//! A real containerd with CRI and CNI on the little node of a test, and pods on it. Everything is made here: the image of
//! a static busybox, the network of a bridge. Nothing of the machine's own containerd, if it has one, is touched.

use super::{run, skip, until};
use hyper_util::rt::TokioIo;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerStatusRequest, CreateContainerRequest, ExecSyncRequest,
    ImageSpec, LinuxContainerConfig, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StopPodSandboxRequest,
};
use std::collections::HashMap;
use std::fs;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// What all containers are made of: busybox, which sleeps unless it is told something else.
pub(crate) const IMAGE: &str = "docker.io/netskoop/busybox:1";
/// Where containerd is on every node.
pub(crate) const SOCKET: &str = "/run/containerd/containerd.sock";
/// On the node's own `/run`, gone with it.
const HOME: &str = "/run/test-containerd";
/// A request to a containerd on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a pod is to be.
#[derive(Clone, Default)]
pub(crate) struct PodPlan {
    namespace: String,
    name: String,
    labels: Vec<(String, String)>,
    annotations: Vec<(String, String)>,
    containers: Vec<String>,
    host_network: bool,
}

impl PodPlan {
    /// A pod with one container called `main`.
    pub(crate) fn new(namespace: &str, name: &str) -> PodPlan {
        let containers = vec!["main".to_owned()];
        PodPlan { namespace: namespace.into(), name: name.into(), containers, ..PodPlan::default() }
    }
    pub(crate) fn label(mut self, key: &str, value: &str) -> PodPlan {
        self.labels.push((key.into(), value.into()));
        self
    }
    pub(crate) fn annotation(mut self, key: &str, value: &str) -> PodPlan {
        self.annotations.push((key.into(), value.into()));
        self
    }
    /// Its containers, instead of `main`.
    pub(crate) fn containers(mut self, names: &[&str]) -> PodPlan {
        self.containers = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }
    pub(crate) fn host_network(mut self) -> PodPlan {
        self.host_network = true;
        self
    }
    pub(crate) fn uid(&self) -> String {
        format!("uid-{}-{}", self.namespace, self.name)
    }

    fn config(&self, cgroup: &str) -> PodSandboxConfig {
        let mode = if self.host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
        let options = NamespaceOption {
            network: mode.into(),
            pid: NamespaceMode::Container.into(),
            ..NamespaceOption::default()
        };
        let security = LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            ..LinuxSandboxSecurityContext::default()
        };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: self.name.clone(),
                uid: self.uid(),
                namespace: self.namespace.clone(),
                attempt: 0,
            }),
            // The node's own name must stay as it is.
            hostname: if self.host_network { String::new() } else { self.name.clone() },
            log_directory: HOME.to_owned(),
            labels: self.all_labels(&[]),
            annotations: self.annotations.iter().cloned().collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{cgroup}/kubepods/pod{}", self.uid()),
                security_context: Some(security),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    /// Those that a kubelet gives.
    fn all_labels(&self, more: &[(&str, &str)]) -> HashMap<String, String> {
        let uid = self.uid();
        let own = [
            ("io.kubernetes.pod.name", &*self.name),
            ("io.kubernetes.pod.namespace", &*self.namespace),
            ("io.kubernetes.pod.uid", &*uid),
        ];
        let given = self.labels.iter().map(|(key, value)| (&**key, &**value));
        let all = own.into_iter().chain(given).chain(more.iter().copied());
        all.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

/// A container that runs.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) pid: i32,
}

/// A pod that runs.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// Of its sandbox.
    pub(crate) id: String,
    /// Of its sandbox.
    pub(crate) pid: i32,
    /// Inode of its network namespace.
    pub(crate) netns: u32,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) containers: Vec<Running>,
}

/// containerd, its pods and containers; all gone when dropped.
pub(crate) struct Containerd {
    process: Option<Child>,
    runtime: tokio::runtime::Runtime,
    /// A cgroup that is only ours.
    cgroup: String,
}

impl Containerd {
    /// Starts it, on a little node only; skips the test where it is not installed.
    pub(crate) fn start() -> Option<Containerd> {
        let missing =
            ["containerd", "ctr", "runc", "busybox"].into_iter().find(|program| find(program).is_none());
        if let Some(program) = missing {
            skip(&format!("{program} is not installed"));
            return None;
        }
        let Some(plugins) = plugins() else {
            skip("the CNI plugins are not installed");
            return None;
        };
        assert!(std::env::var_os("NETSKOOP_TEST_NODE").is_some(), "only on a node of its own");
        // What CNI remembers, and containerd's own files if it ever forgets where they are to be.
        run("mount", &["-t", "tmpfs", "none", "/var/lib"]);
        for directory in ["root", "cni", "image"] {
            fs::create_dir_all(Path::new(HOME).join(directory)).unwrap();
        }
        fs::write(Path::new(HOME).join("cni/10-bridge.conflist"), NETWORK).unwrap();
        fs::write(config_file(), config(&plugins)).unwrap();
        let cgroup = format!("netskoop-test-{:08x}", std::hash::RandomState::new().hash_one(0) as u32);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut containerd = Containerd { process: None, runtime, cgroup };
        containerd.spawn();
        let image = make_image(&Path::new(HOME).join("image"));
        for namespace in ["k8s.io", "default"] {
            containerd.ctr(&["-n", namespace, "images", "import", image.to_str().unwrap()]);
        }
        Some(containerd)
    }

    fn spawn(&mut self) {
        let log = fs::File::options().append(true).create(true).open(log_file()).unwrap();
        let mut command = Command::new("containerd");
        command.arg("-c").arg(config_file()).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(command.spawn().unwrap());
        until("containerd answers", || {
            let answer = Command::new("ctr").args(["--connect-timeout", "1s", "version"]).output().unwrap();
            answer.status.success().then_some(())
        });
        let version = |client: &mut Cri| {
            let request = k8s_cri::v1::VersionRequest::default();
            self.runtime.block_on(client.version(request)).map(drop).ok()
        };
        until("its CRI answers", || version(&mut self.cri()));
    }

    /// `kill -9`; its containers and shims live on.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Starts it again after it was killed.
    pub(crate) fn restart(&mut self) {
        assert!(self.process.is_none(), "it was not killed");
        self.spawn();
    }

    /// Its own client; what it prints.
    #[track_caller]
    pub(crate) fn ctr(&self, args: &[&str]) -> String {
        run("ctr", args)
    }

    fn cri(&self) -> Cri {
        RuntimeServiceClient::new(self.runtime.block_on(connect()))
    }

    /// Waits for an answer.
    #[track_caller]
    fn ask<T>(&self, answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> T {
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, answer).await });
        answer.expect("CRI does not answer").unwrap_or_else(|status| panic!("CRI: {status}")).into_inner()
    }

    /// Runs a pod with all its containers.
    #[track_caller]
    pub(crate) fn run_pod(&self, plan: &PodPlan) -> Pod {
        let mut cri = self.cri();
        let config = plan.config(&self.cgroup);
        let request =
            RunPodSandboxRequest { config: Some(config.clone()), ..RunPodSandboxRequest::default() };
        let id = self.ask(cri.run_pod_sandbox(request)).pod_sandbox_id;
        let create = |name: &String| self.run_container(&mut cri, plan, &config, &id, name);
        let containers = plan.containers.iter().map(create).collect();
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
        let answer = self.ask(self.cri().pod_sandbox_status(request));
        let network = answer.status.unwrap().network.unwrap_or_default();
        let more = network.additional_ips.into_iter().map(|ip| ip.ip);
        let addresses = std::iter::once(network.ip).chain(more).filter_map(|ip| ip.parse().ok()).collect();
        let pid = pid_in(&answer.info);
        let netns = u32::try_from(fs::metadata(format!("/proc/{pid}/ns/net")).unwrap().ino()).unwrap();
        let (namespace, name, uid) = (plan.namespace.clone(), plan.name.clone(), plan.uid());
        Pod { namespace, name, uid, id, pid, netns, addresses, containers }
    }

    fn run_container(
        &self,
        cri: &mut Cri,
        plan: &PodPlan,
        sandbox: &PodSandboxConfig,
        sandbox_id: &str,
        name: &str,
    ) -> Running {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: IMAGE.to_owned(), ..ImageSpec::default() }),
            labels: plan.all_labels(&[("io.kubernetes.container.name", name)]),
            annotations: HashMap::from([("io.kubernetes.container.restartCount".to_owned(), "0".to_owned())]),
            log_path: format!("{}-{name}.log", plan.name),
            linux: Some(LinuxContainerConfig::default()),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox.clone()),
        };
        let id = self.ask(cri.create_container(request)).container_id;
        self.ask(cri.start_container(StartContainerRequest { container_id: id.clone() }));
        let request = ContainerStatusRequest { container_id: id.clone(), verbose: true };
        let info = self.ask(cri.container_status(request)).info;
        Running { name: name.to_owned(), id, pid: pid_in(&info) }
    }

    /// Stops and removes a pod.
    #[track_caller]
    pub(crate) fn remove_pod(&self, pod: &Pod) {
        let mut cri = self.cri();
        self.ask(cri.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() }));
        self.ask(cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() }));
    }

    /// Runs a program of busybox in a container of a pod; what it prints.
    #[track_caller]
    pub(crate) fn exec(&self, container: &Running, words: &[&str]) -> String {
        let cmd = std::iter::once("/bin/busybox").chain(words.iter().copied()).map(str::to_owned).collect();
        let request = ExecSyncRequest { container_id: container.id.clone(), cmd, timeout: 30 };
        let answer = self.ask(self.cri().exec_sync(request));
        let (out, err) = (String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
        assert_eq!(answer.exit_code, 0, "{words:?}: {out}{err}");
        out.into_owned()
    }

    /// Runs a container without any CRI, in a namespace of containerd, with no network but its loopback; its first process.
    #[track_caller]
    pub(crate) fn run_plain(&self, namespace: &str, id: &str, labels: &[(&str, &str)]) -> i32 {
        let cgroup = format!("/{}/{namespace}/{id}", self.cgroup);
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("--label={key}={value}")).collect();
        let mut args = vec!["-n", namespace, "run", "-d", "--cgroup", &cgroup];
        args.extend(labels.iter().map(|label| &**label));
        self.ctr(&[&args[..], &[IMAGE, id]].concat());
        let tasks = self.ctr(&["-n", namespace, "tasks", "ls"]);
        let task = tasks
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|words| words[0] == id);
        task.unwrap_or_else(|| panic!("{id} does not run: {tasks}"))[1].parse().unwrap()
    }

    /// Removes such a container.
    #[track_caller]
    pub(crate) fn remove_plain(&self, namespace: &str, id: &str) {
        self.ctr(&["-n", namespace, "tasks", "rm", "-f", id]);
        self.ctr(&["-n", namespace, "containers", "rm", id]);
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        // Without its shims and their containers nothing of this node is left but cgroups: they are the machine's.
        shims().for_each(kill);
        let cgroups = cgroups(&self.cgroup);
        let end = std::time::Instant::now() + super::LIMIT;
        while cgroups.iter().any(|path| !remove_cgroup(path)) && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(log_file()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("the end of containerd's log, backwards:\n{}", lines.join("\n"));
        }
    }
}

type Cri = RuntimeServiceClient<Channel>;

async fn connect() -> Channel {
    let connector =
        tower::service_fn(|_| async { tokio::net::UnixStream::connect(SOCKET).await.map(TokioIo::new) });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
}

/// First process of a container or sandbox, from a verbose answer.
fn pid_in(info: &HashMap<String, String>) -> i32 {
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    i32::try_from(info["pid"].as_i64().unwrap()).unwrap()
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Where Debian and Fedora have the CNI plugins.
fn plugins() -> Option<PathBuf> {
    ["/usr/lib/cni", "/usr/libexec/cni"]
        .map(PathBuf::from)
        .into_iter()
        .find(|dir| dir.join("bridge").is_file())
}

fn config_file() -> PathBuf {
    Path::new(HOME).join("config.toml")
}

fn log_file() -> PathBuf {
    Path::new(HOME).join("log")
}

const NETWORK: &str = r#"{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {
      "type": "bridge", "bridge": "pods0", "isGateway": true, "ipMasq": false,
      "ipam": {
        "type": "host-local", "dataDir": "/run/test-containerd/ipam",
        "ranges": [[{"subnet": "10.244.77.0/24"}], [{"subnet": "fd44:77::/64"}]]
      }
    },
    {"type": "loopback"}
  ]
}"#;

/// containerd's own configuration, for the generations 1 and 2.
fn config(plugins: &Path) -> String {
    let version = run("containerd", &["--version"]);
    let is_old = version.split_whitespace().any(|word| word.trim_start_matches('v').starts_with("1."));
    let (plugins, runtime) = (plugins.display(), "runtime_type = \"io.containerd.runc.v2\"");
    let common = format!(
        "root = \"{HOME}/root\"\nstate = \"/run/containerd\"\n[grpc]\naddress = \"{SOCKET}\"\n[debug]\nlevel = \"warn\"\n"
    );
    match is_old {
        true => format!(
            r#"version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"]
{common}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
disable_tcp_service = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{HOME}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
{runtime}
"#
        ),
        false => format!(
            r#"version = 3
{common}
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{plugins}"]
bin_dir = ""
conf_dir = "{HOME}/cni"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
{runtime}
"#
        ),
    }
}

/// An image with nothing but busybox, as `docker save` writes them.
fn make_image(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    for directory in ["bin", "tmp", "etc", "proc", "sys", "dev", "root"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(find("busybox").unwrap(), root.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).unwrap();
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let tar = |file: &str, from: &str, names: &[&str]| {
        run("tar", &[&["--owner=0", "--group=0", "-cf", &at(file), "-C", from], names].concat());
    };
    tar("layer.tar", root.to_str().unwrap(), &["."]);
    let sum = run("sha256sum", &[&at("layer.tar")]);
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "created": "2024-01-01T00:00:00Z",
        "config": {"Entrypoint": ["/bin/busybox", "sleep", "2147483647"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sum.split_whitespace().next().unwrap())]},
        "history": [{"created": "2024-01-01T00:00:00Z"}],
    });
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    tar("image.tar", dir.to_str().unwrap(), &["config.json", "layer.tar", "manifest.json"]);
    dir.join("image.tar")
}

/// The shims of this node: those in its mount namespace.
fn shims() -> impl Iterator<Item = i32> {
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    let pids = fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(move |pid: &i32| {
        let is_here = fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|mnt| mnt == own);
        is_here
            && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.starts_with("containerd-shim"))
    })
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// A cgroup in every hierarchy that has it.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).unwrap().flatten().map(|entry| entry.path());
    std::iter::once(root.to_owned())
        .chain(hierarchies)
        .map(|dir| dir.join(name))
        .filter(|dir| dir.is_dir())
        .collect()
}

/// Removes a cgroup with all below it, and ends what runs there; whether it is gone.
fn remove_cgroup(path: &Path) -> bool {
    let Ok(entries) = fs::read_dir(path) else { return true };
    let below: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    let all_gone = below.iter().filter(|path| !remove_cgroup(path)).count() == 0;
    let procs = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    procs.lines().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid > 0).for_each(kill);
    all_gone && fs::remove_dir(path).is_ok()
}
