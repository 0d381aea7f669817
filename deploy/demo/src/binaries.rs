//! The binaries that the demo starts: built when Cargo runs us, else found beside us.
//!
//! They are copied into the demo's own folder, where the pods' users may execute them: a checkout
//! often lies in a home that nobody else may enter.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

/// The daemons and this program, by file name.
pub(crate) const AGENT: &str = "postern-agent";
pub(crate) const PROXY: &str = "postern-proxy";
pub(crate) const DEMO: &str = "postern-demo";

/// Makes sure that the binaries exist and tells the folder that holds them.
pub(crate) fn ready(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let own = env::current_exe().context("cannot find this program's own file")?;
    let beside = own
        .parent()
        .context("this program's file lies in no folder")?;
    let folder = match (given, env::var_os("CARGO")) {
        (Some(folder), _) => folder,
        (None, Some(cargo)) => {
            build(&PathBuf::from(cargo))?;
            beside
        }
        (None, None) => beside,
    };
    for name in [AGENT, PROXY] {
        ensure!(
            folder.join(name).is_file(),
            "there is no `{name}` in `{}`: run `cargo demo`, or name their folder with --binaries",
            folder.display()
        );
    }
    Ok(folder.to_owned())
}

/// Copies the binaries to where every user may execute them.
pub(crate) fn install(from: &Path, to: &Path) -> anyhow::Result<()> {
    let own = env::current_exe().context("cannot find this program's own file")?;
    for (source, name) in [
        (from.join(AGENT), AGENT),
        (from.join(PROXY), PROXY),
        (own, DEMO),
    ] {
        fs::copy(&source, to.join(name))
            .with_context(|| format!("cannot copy `{}` to `{}`", source.display(), to.display()))?;
    }
    Ok(())
}

/// Builds the daemons in the profile in which this program was built; Cargo shows the progress.
fn build(cargo: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(cargo);
    // With the features that this program was built with.
    command.args(["build", "--workspace", "--bin", AGENT, "--bin", PROXY]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let status = command
        .status()
        .with_context(|| format!("cannot run `{}`", cargo.display()))?;
    if !status.success() {
        bail!("the daemons did not build");
    }
    Ok(())
}
