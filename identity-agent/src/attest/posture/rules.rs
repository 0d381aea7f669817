//! The layers: what each is called, what it states, in which bundle it is, and what mends it.
//!
//! The bundles are those of the Pod Security Standards, stricter where the CIS Docker Benchmark is; docs/posture.md has
//! them side by side.

/// The bundles that ask for a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bundle {
    /// `posture:baseline`, and so `posture:restricted` too.
    Baseline,
    /// `posture:restricted` alone.
    Restricted,
    /// Worth having, asked for by none.
    Neither,
}

/// One layer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) layer: &'static str,
    /// What a pass states, after `posture:`; empty where that depends on what was found.
    pub(super) selector: &'static str,
    pub(super) bundle: Bundle,
    docker: &'static str,
    compose: &'static str,
    kubernetes: &'static str,
}

impl Rule {
    pub(super) fn mend(&self) -> String {
        format!(
            "{} | compose: {} | kubernetes: {}",
            self.docker, self.compose, self.kubernetes
        )
    }

    /// Does it decide about this selector?
    pub(super) fn is_about(&self, selector: &str) -> bool {
        let begins = |start: &str| selector.starts_with(start);
        match self.layer {
            "lsm" => begins("apparmor:") || begins("selinux:"),
            "user" => selector == self.selector || begins("uid:"),
            "group" => selector == self.selector || begins("gid:"),
            "capabilities" => selector == self.selector || selector == "caps:none",
            _ => selector == self.selector,
        }
    }
}

macro_rules! rules {
    ($($name:ident, $layer:literal, $selector:literal, $bundle:ident, $docker:literal, $compose:literal, $kubernetes:literal;)*) => {
        $(pub(super) static $name: Rule = Rule {
            layer: $layer,
            selector: $selector,
            bundle: Bundle::$bundle,
            docker: $docker,
            compose: $compose,
            kubernetes: $kubernetes,
        };)*

        #[cfg(test)]
        pub(super) static ALL: &[&Rule] = &[$(&$name),*];
    };
}

rules! {
    PID_NAMESPACE, "pid-namespace", "ns:pid:own", Baseline,
        "no --pid host", "no `pid: host`", "hostPID: false";
    NETWORK_NAMESPACE, "network-namespace", "ns:net:own", Baseline,
        "no --network host", "no `network_mode: host`", "hostNetwork: false";
    IPC_NAMESPACE, "ipc-namespace", "ns:ipc:own", Baseline,
        "no --ipc host", "no `ipc: host`", "hostIPC: false";
    MOUNT_NAMESPACE, "mount-namespace", "ns:mnt:own", Baseline,
        "docker run", "a service of its own", "a container of its own";
    UTS_NAMESPACE, "uts-namespace", "ns:uts:own", Restricted,
        "no --uts host", "no `uts: host`", "hostNetwork: false";
    USER_NAMESPACE, "user-namespace", "ns:user:own", Neither,
        "dockerd --userns-remap default, and no --userns host", "no `userns_mode: host`", "hostUsers: false";
    CGROUP_NAMESPACE, "cgroup-namespace", "ns:cgroup:own", Neither,
        "--cgroupns private", "cgroup: private", "a node with cgroup v2";
    PRIVILEGED, "privileged", "unprivileged", Baseline,
        "no --privileged", "no `privileged: true`", "securityContext.privileged: false";
    CAPABILITIES_DEFAULT, "capabilities-default", "caps:default", Baseline,
        "no --cap-add beyond the default set", "no `cap_add` beyond the default set", "no securityContext.capabilities.add beyond the default set";
    CAPABILITIES, "capabilities", "caps:restricted", Restricted,
        "--cap-drop ALL", "cap_drop: [ALL]", "securityContext.capabilities.drop: [ALL]";
    NO_NEW_PRIVILEGES, "no-new-privs", "no-new-privs", Restricted,
        "--security-opt no-new-privileges", "security_opt: ['no-new-privileges:true']", "securityContext.allowPrivilegeEscalation: false";
    USER, "user", "nonroot", Restricted,
        "--user 65532:65532", "user: '65532:65532'", "securityContext.runAsNonRoot: true, runAsUser: 65532";
    GROUP, "group", "nonroot-group", Neither,
        "--user 65532:65532", "user: '65532:65532'", "securityContext.runAsGroup: 65532";
    SECCOMP, "seccomp", "seccomp:filter", Baseline,
        "no --security-opt seccomp=unconfined", "no `security_opt: ['seccomp:unconfined']`", "securityContext.seccompProfile.type: RuntimeDefault";
    LSM, "lsm", "", Baseline,
        "--security-opt apparmor=docker-default", "security_opt: ['apparmor:docker-default']", "securityContext.appArmorProfile.type: RuntimeDefault, or seLinuxOptions.type: container_t";
    ROOT_FILE_SYSTEM, "root-filesystem", "rootfs:readonly", Restricted,
        "--read-only", "read_only: true", "securityContext.readOnlyRootFilesystem: true";
    MEMORY_LIMIT, "memory-limit", "limit:memory", Restricted,
        "--memory 256m", "mem_limit: 256m", "resources.limits.memory: 256Mi";
    PIDS_LIMIT, "pids-limit", "limit:pids", Restricted,
        "--pids-limit 256", "pids_limit: 256", "podPidsLimit: 256 of the kubelet";
    CPU_LIMIT, "cpu-limit", "limit:cpu", Restricted,
        "--cpus 1", "cpus: 1", "resources.limits.cpu: '1'";
    SWAP_LIMIT, "swap-limit", "limit:swap", Neither,
        "--memory 256m --memory-swap 256m", "memswap_limit: 256m", "memorySwap.swapBehavior: NoSwap of the kubelet";
    IO_LIMIT, "io-limit", "limit:io", Neither,
        "--device-write-bps DEVICE:RATE", "blkio_config.device_write_bps", "no field: a class of the runtime";
    CPUSET, "cpuset", "limit:cpuset", Neither,
        "--cpuset-cpus 0", "cpuset: '0'", "cpuManagerPolicy: static of the kubelet";
    HOST_MOUNTS, "host-mounts", "mounts:no-host", Baseline,
        "no -v /HOST/PATH:…, a named volume instead", "no path of the host in `volumes`", "no hostPath volume";
    RUNTIME_SOCKET, "runtime-socket", "mounts:no-runtime-socket", Baseline,
        "no -v /var/run/docker.sock:…", "no socket of the engine in `volumes`", "no hostPath volume with the runtime's socket";
    PROC_MASKS, "proc-masks", "proc:masked", Baseline,
        "no --security-opt systempaths=unconfined, no --privileged", "no `security_opt: ['systempaths=unconfined']`", "securityContext.procMount: Default";
    DEVICES, "devices", "devices:default", Baseline,
        "no --device, no --device-cgroup-rule; --cap-drop MKNOD", "no `devices`, no `device_cgroup_rules`; cap_drop: [MKNOD]", "no device in resources.limits, no hostPath below /dev; securityContext.capabilities.drop: [MKNOD]";
    MOUNT_PROPAGATION, "mount-propagation", "mounts:private", Restricted,
        "no :shared behind -v", "no `propagation: shared`", "no mountPropagation: Bidirectional";
    WRITABLE_EXECUTABLE, "writable-executable", "mounts:no-writable-exec", Neither,
        "--read-only, and --tmpfs /tmp:noexec", "read_only: true, tmpfs: ['/tmp:noexec']", "securityContext.readOnlyRootFilesystem: true, volumes with noexec";
    MEMFD, "memfd", "memfd:noexec", Neither,
        "sysctl -w vm.memfd_noexec=2 on the host", "sysctl -w vm.memfd_noexec=2 on the host", "sysctl -w vm.memfd_noexec=2 on the node";
    IMAGE, "image", "", Neither,
        "docker run IMAGE@sha256:…", "image: NAME@sha256:…", "image: NAME@sha256:…";
    POD, "pod", "", Neither,
        "no docker exec --privileged, no docker exec --user 0, no weaker container in this network", "no weaker service in `network_mode: service:…`", "no weaker container in the pod, no kubectl exec as root";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::ALL;

    #[test]
    fn every_layer_has_a_name_of_its_own_and_three_ways_to_be_mended() {
        let names: BTreeSet<&str> = ALL.iter().map(|rule| rule.layer).collect();
        assert_eq!(names.len(), ALL.len());
        for rule in ALL {
            for mend in [rule.docker, rule.compose, rule.kubernetes] {
                assert!(!mend.is_empty(), "{}", rule.layer);
            }
        }
    }
}
