//! Finds out what there is, and takes the steps. The thin shell around `nft` and its like.

use std::{
    env, fmt,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use super::{
    Failure, iptables, nft,
    options::Backend,
    plan::{Mode, Plan},
    routing::{self, FAMILIES, has_rule},
};

/// One program to run. Shown as a line of shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) program: &'static str,
    pub(crate) arguments: Vec<String>,
    /// What it reads.
    pub(crate) input: Option<String>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.program, self.arguments.join(" "))?;
        match &self.input {
            Some(input) => write!(f, " <<'POSTERN'\n{input}POSTERN"),
            None => Ok(()),
        }
    }
}

/// The steps that bring the namespace from where it is to the plan.
pub(crate) fn to_set_up(plan: &Plan, backend: Backend) -> Result<Vec<Step>, Failure> {
    let mut steps = Vec::new();
    for family in families() {
        let has_rule = marks_are_routed(family)?;
        match plan.mode {
            Mode::Tproxy => steps.extend(routing::add(family, has_rule)),
            Mode::Redirect if has_rule => steps.extend(routing::remove(family)),
            Mode::Redirect => {}
        }
    }
    // What the other program made is taken away last, so that there is no moment without rules.
    let nft_is_here = is_installed("nft");
    match backend {
        Backend::Nft | Backend::Auto if nft_is_here => {
            steps.push(nft_step(nft::ruleset(plan)));
            // A program that is installed and does not work has made no rules either.
            steps.extend(iptables_steps(iptables::clean).unwrap_or_default());
        }
        Backend::Iptables | Backend::Auto if is_installed("iptables-restore") => {
            if families().count() > 1 && !is_installed("ip6tables-restore") {
                let why = "`ip6tables-restore` was not found, and IPv6 would be a way round the proxy: install the package nftables, or switch IPv6 off in this network namespace";
                return Err(anyhow::Error::msg(why).into());
            }
            steps.extend(iptables_steps(|family, saved| {
                Some(iptables::rules(plan, family, saved))
            })?);
            if nft_is_here {
                steps.push(nft_step(nft::CLEAN.to_owned()));
            }
        }
        _ => {
            let why = "neither `nft` nor `iptables-restore` was found as asked: install the package nftables";
            return Err(anyhow::Error::msg(why).into());
        }
    }
    Ok(steps)
}

/// The steps that leave nothing of ours.
pub(crate) fn to_clean_up() -> Result<Vec<Step>, Failure> {
    let mut steps = Vec::new();
    if is_installed("nft") {
        steps.push(nft_step(nft::CLEAN.to_owned()));
    } else if !is_installed("iptables-save") {
        let why = "neither `nft` nor `iptables-save` was found, so nobody knows what there is: install the package nftables";
        return Err(anyhow::Error::msg(why).into());
    }
    steps.extend(iptables_steps(iptables::clean)?);
    for family in families() {
        if marks_are_routed(family)? {
            steps.extend(routing::remove(family));
        }
    }
    Ok(steps)
}

/// Takes the steps, one after the other.
pub(crate) fn apply(steps: &[Step]) -> anyhow::Result<()> {
    steps
        .iter()
        .try_for_each(|step| run(step.program, &step.arguments, step.input.as_deref()).map(|_| ()))
}

fn nft_step(rules: String) -> Step {
    Step {
        program: "nft",
        arguments: vec!["-f".to_owned(), "-".to_owned()],
        input: Some(rules),
    }
}

/// A step for each family whose rules `write` changes, given those that there are.
fn iptables_steps(
    write: impl Fn(iptables::Family, &str) -> Option<String>,
) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    for family in iptables::Family::ALL {
        if !is_installed(family.save()) {
            continue;
        }
        let saved = run(family.save(), &[], None)?;
        if let Some(input) = write(family, &saved) {
            steps.push(Step {
                program: family.restore(),
                arguments: vec!["--noflush".to_owned()],
                input: Some(input),
            });
        }
    }
    Ok(steps)
}

/// IPv6 may be switched off, and then it has no rules of routing either.
fn families() -> impl Iterator<Item = &'static str> {
    let v6_is_off = std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
        .map_or(true, |text| text.trim() != "0");
    FAMILIES
        .into_iter()
        .filter(move |&family| family != "-6" || !v6_is_off)
}

fn marks_are_routed(family: &str) -> anyhow::Result<bool> {
    if !is_installed("ip") {
        return Ok(false);
    }
    let arguments = [family, "rule", "show"].map(str::to_owned);
    run("ip", &arguments, None).map(|shown| has_rule(&shown))
}

/// Runs a program to its end and tells what it said.
fn run(program: &str, arguments: &[String], input: Option<&str>) -> anyhow::Result<String> {
    let stdin = if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{program}`"))?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // A program that did not read to the end says why on its standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("cannot wait for `{program}`"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    let mend = if said.contains("ermission denied") || said.contains("not permitted") {
        "; it needs CAP_NET_ADMIN in this network namespace"
    } else if said.contains("device is not up") {
        "; bring the loopback device up first: `ip link set lo up`"
    } else {
        ""
    };
    let line = format!("{program} {}", arguments.join(" "));
    bail!("`{}`: {said}{mend}", line.trim_end())
}

/// Whether a program lies where programs are looked for.
fn is_installed(program: &str) -> bool {
    let here = |folder: &Path| folder.join(program).is_file();
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|folder| here(&folder)))
}
