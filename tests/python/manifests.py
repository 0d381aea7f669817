"""Judges manifests by the schemas of Kubernetes, and what `postern-proxy inject` made of them.

    manifests.py validate VERSION FILE…  every document, by the schemas since a version, strictly
    manifests.py same BEFORE AFTER       AFTER without the sidecar means what BEFORE means
    manifests.py restricted FILE…        every pod passes the Pod Security Standard `restricted`
"""

import sys

import kubernetes_validate
import yaml

# The first version in which a sidecar is an init container by default, the first in which that is
# stable, and the newest that there is a schema for.
VERSIONS = ["1.29", "1.33", "1.37"]

# What the validator has no schemas for, because a cluster need not know it.
FOREIGN = {"Kustomization", "PeerAuthentication", "AuthorizationPolicy", "Workload"}

CONTAINERS = {"postern-netns", "postern-proxy"}
VOLUMES = {"postern-config", "postern-agent-socket", "postern-no-token"}
SERVICES = ("-postern", "-postern-netns")


def documents(path: str) -> list:
    with open(path, encoding="utf-8", newline="") as file:
        return [document for document in yaml.safe_load_all(file) if document is not None]


def objects(document: dict):
    """An object, or those of a list."""
    if document.get("kind") == "List":
        for item in document["items"]:
            yield from objects(item)
    else:
        yield document


def validate(path: str, since: str) -> int:
    count = 0
    for document in documents(path):
        if "services" in document:
            continue
        for thing in objects(document):
            group = thing["apiVersion"].rpartition("/")[0]
            if thing["kind"] in FOREIGN or group.endswith(".example"):
                continue
            for version in VERSIONS[VERSIONS.index(since):]:
                kubernetes_validate.validate(thing, version, strict=True)
            count += 1
    return count


def without(value):
    """A value as it was before, as far as the sidecar is known by its names."""
    if isinstance(value, list):
        return [without(item) for item in value]
    if not isinstance(value, dict):
        return value
    rest = {}
    for key, item in value.items():
        if key in ("initContainers", "volumes") and isinstance(item, list):
            names = CONTAINERS if key == "initContainers" else VOLUMES
            item = [one for one in item if not (isinstance(one, dict) and one.get("name") in names)]
        if key == "services":
            item = {name: one for name, one in item.items() if not name.endswith(SERVICES)}
        item = without(item)
        # Nothing, an empty list and no key mean the same to Kubernetes.
        if not (key in ("initContainers", "volumes") and not item):
            rest[key] = item
    return rest


# Pod Security Standards of Kubernetes: what `restricted` demands, all of `baseline` in it.
VOLUME_KINDS = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
PROFILES = {"RuntimeDefault", "Localhost"}


def pods(document: dict):
    """The specs of pods, wherever they stand."""
    for thing in objects(document):
        spec = thing.get("spec") or {}
        if thing["kind"] == "Pod":
            yield spec
        elif "jobTemplate" in spec:
            yield spec["jobTemplate"]["spec"]["template"]["spec"]
        elif "template" in spec:
            yield spec["template"]["spec"]


def of_pod(spec: dict):
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    for volume in spec.get("volumes", []):
        for kind in set(volume) - {"name"} - VOLUME_KINDS:
            yield f"volumes[{volume['name']}].{kind}"
    if (spec.get("securityContext") or {}).get("sysctls"):
        yield "securityContext.sysctls"


def of_container(container: dict, pod: dict):
    own = container.get("securityContext") or {}

    def field(name: str):
        return own.get(name, pod.get(name))

    rights = own.get("capabilities") or {}
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    if "ALL" not in rights.get("drop", []):
        yield "capabilities.drop"
    if set(rights.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities.add"
    if field("runAsNonRoot") is not True:
        yield "runAsNonRoot"
    if field("runAsUser") == 0:
        yield "runAsUser"
    if (field("seccompProfile") or {}).get("type") not in PROFILES:
        yield "seccompProfile"
    if own.get("procMount", "Default") != "Default":
        yield "procMount"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "hostPort"


def restricted(path: str) -> tuple[int, list[str]]:
    """How many pods there are, and every field that would keep one from being made."""
    count, found = 0, []
    for document in documents(path):
        for spec in pods(document):
            count += 1
            found += of_pod(spec)
            pod = spec.get("securityContext") or {}
            for kind in ("initContainers", "containers", "ephemeralContainers"):
                for container in spec.get(kind, []):
                    name = f"{kind}[{container['name']}]"
                    found += [f"{name}.{field}" for field in of_container(container, pod)]
    return count, found


def main() -> None:
    command, *files = sys.argv[1:]
    if command == "validate":
        since, *files = files
        for path in files:
            try:
                print(f"{path}: {validate(path, since)} objects are valid")
            except kubernetes_validate.ValidationError as error:
                place = ".".join(str(part) for part in error.path)
                sys.exit(f"{path}: {place}: {error.message} (version {error.version})")
    elif command == "same":
        before, after = (documents(path) for path in files)
        assert without(before) == without(after), f"{files[1]} means something else than {files[0]}"
    elif command == "restricted":
        for path in files:
            count, found = restricted(path)
            if found:
                sys.exit(f"{path}: `restricted` forbids: {', '.join(found)}")
            print(f"{path}: {count} pods are restricted")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
