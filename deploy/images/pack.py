"""Packs the roots that `build` has laid out into images, and says what is in them.

    pack.py OUT TAG

Every image is written as `docker save` would write it, with nothing in it that depends on the
time, the machine or the order of files, and is given to the engine by `docker load`. Its digest is
that of its configuration.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

# What each image is, whom it runs as, and what it does when it is told nothing else.
IMAGES = {
    "agent": {
        "title": "Postern identity agent",
        "crate": "postern-agent",
        # It looks at processes of other users: root, and of root's rights the two that it names.
        "User": "0:0",
        "Entrypoint": ["/postern-agent"],
        "Cmd": ["run", "--config", "/etc/postern/agent.yaml"],
    },
    "proxy": {
        "title": "Postern sidecar proxy",
        "crate": "postern-proxy",
        "User": "1337:1337",
        "Entrypoint": ["/postern-proxy"],
        "Cmd": ["run", "--config", "/etc/postern/proxy.yaml"],
    },
    "netns": {
        "title": "Postern's rules for a network namespace",
        "crate": "postern-proxy",
        # Rules are made with CAP_NET_ADMIN, which a container gives to its root alone.
        "User": "0:0",
        "Entrypoint": ["/postern-proxy", "netns"],
        "Cmd": ["setup", "--config", "/etc/postern/proxy.yaml"],
        "Env": ["PATH=/usr/sbin"],
    },
    "demo": {
        "title": "Postern's demo: an app that knows nothing of identities",
        "crate": "postern-demo",
        "User": "10001:10001",
        "Entrypoint": ["/postern-demo"],
        "Cmd": ["app", "--listen", "0.0.0.0:8080"],
    },
}


def layer(root: Path) -> bytes:
    """The files of a root, in order, with nobody's name and no time."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(root.rglob("*")):
            entry = archive.gettarinfo(path, path.relative_to(root).as_posix())
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            if entry.isfile():
                with open(path, "rb") as file:
                    archive.addfile(entry, file)
            else:
                archive.addfile(entry)
    return packed.getvalue()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def configuration(name: str, tag: str, diff: str) -> bytes:
    image = IMAGES[name]
    config = {key: image[key] for key in ("User", "Entrypoint", "Cmd", "Env") if key in image}
    config["Labels"] = {
        "org.opencontainers.image.title": image["title"],
        "org.opencontainers.image.version": tag,
        "org.opencontainers.image.licenses": "Apache-2.0",
    }
    whole = {
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "deploy/images/build"}],
    }
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()


def load(name: str, tag: str, out: Path) -> str:
    """Gives an image to the engine, and tells its digest."""
    packed = layer(out / name / "root")
    diff = digest(packed)
    config = configuration(name, tag, diff)
    manifest = [{
        "Config": f"{digest(config)}.json",
        "RepoTags": [f"postern/{name}:{tag}"],
        "Layers": [f"{diff}/layer.tar"],
    }]
    path = out / f"{name}.tar"
    with tarfile.open(path, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for member, data in [
            (f"{digest(config)}.json", config),
            (f"{diff}/layer.tar", packed),
            ("manifest.json", json.dumps(manifest).encode()),
        ]:
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    subprocess.run(["docker", "load", "-q", "-i", path], check=True, stdout=subprocess.DEVNULL)
    return digest(config)


def crates(crate: str) -> list[dict]:
    """Every crate that is linked into a program, from the lock file."""
    command = ["cargo", "tree", "--locked", "-p", crate, "-e", "normal", "--prefix", "none",
               "--target", "x86_64-unknown-linux-gnu", "--format", "{p}|{l}"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {}
    for line in told.splitlines():
        package, _, licence = line.removesuffix(" (*)").partition("|")
        name, version = package.split()[:2]
        if "(proc-macro)" not in package:
            found[name, version.removeprefix("v")] = licence.removesuffix(" (*)")
    return [
        {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:cargo/{name}@{version}",
            "licenses": [{"expression": licence}] if licence else [],
        }
        for (name, version), licence in sorted(found.items())
    ]


def packages(root: Path) -> list[dict]:
    """The packages of Debian whose files were taken."""
    found = {}
    for path in sorted(root.rglob("*")):
        place = "/" + path.relative_to(root).as_posix()
        if not path.is_file() or place.startswith("/postern-"):
            continue
        # The package may know the file by the path from before /bin and /lib became links.
        for known in (place, place.removeprefix("/usr"), os.path.realpath(place)):
            told = subprocess.run(["dpkg-query", "-S", known], capture_output=True, text=True)
            if told.returncode == 0:
                name = told.stdout.split(": ")[0].split(",")[0]
                shown = ["dpkg-query", "-W", "-f", "${source:Package} ${Version}", name]
                _, version = subprocess.run(shown, check=True, capture_output=True, text=True).stdout.split()
                found[name.split(":")[0]] = version
                break
        else:
            sys.exit(f"pack.py: no package has `{place}`")
    return [
        {"type": "library", "name": name, "version": version, "purl": f"pkg:deb/debian/{name}@{version}"}
        for name, version in sorted(found.items())
    ]


def bill(name: str, tag: str, image: str, out: Path) -> int:
    """Writes what an image consists of, and tells how many parts that are."""
    components = crates(IMAGES[name]["crate"]) + packages(out / name / "root")
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "name": f"postern/{name}",
                "version": tag,
                "hashes": [{"alg": "SHA-256", "content": image}],
            }
        },
        "components": components,
    }
    (out / f"{name}.cdx.json").write_text(json.dumps(document, indent=1) + "\n")
    return len(components)


def main() -> None:
    out, tag = Path(sys.argv[1]), sys.argv[2]
    digests = []
    for name in IMAGES:
        image = load(name, tag, out)
        parts = bill(name, tag, image, out)
        size = sum(path.stat().st_size for path in (out / name / "root").rglob("*") if path.is_file())
        digests.append(f"{name} sha256:{image}\n")
        print(f"postern/{name}:{tag}  {size / 1e6:5.1f} MB  sha256:{image}  "
              f"{parts} components in {out}/{name}.cdx.json", flush=True)
    (out / "digests").write_text("".join(digests))


if __name__ == "__main__":
    main()
