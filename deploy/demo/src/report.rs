//! What a person reads: one line for each thing shown.

use anstyle::{AnsiColor, Style};
use anyhow::ensure;

use crate::{
    network::{Network, Pod},
    world::World,
};

/// The lines so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    shown: usize,
    failed: Vec<&'static str>,
}

impl Report {
    /// Says what will be seen, and where.
    pub(crate) fn begin(network: &Network) -> Self {
        let addresses = Pod::ALL.map(|pod| format!("{} {}", pod.name(), network.address(pod)));
        let kept_apart = match network {
            Network::Loopback { why, .. } => format!("loopback addresses ({why})"),
            Network::Namespaces(_) => {
                "a network namespace each, with redirection and default deny".to_owned()
            }
        };
        anstream::println!(
            "{BOLD}Postern demo{BOLD:#}: one agent, two pods, one road for every access"
        );
        anstream::println!("{DIM}pods: {}; {kept_apart}{DIM:#}\n", addresses.join(", "));
        Self::default()
    }

    /// Tells how far the start is.
    pub(crate) fn progress(&self, what: &str) {
        anstream::println!("{DIM}  … {what}{DIM:#}");
    }

    /// Says what the next lines are about.
    pub(crate) fn chapter(&self, title: &str) {
        anstream::println!("\n{BOLD}{title}{BOLD:#}");
    }

    /// One thing shown: what was asked, what came back, what decided, and whether that is right.
    pub(crate) fn line(&mut self, title: &'static str, came_true: bool, shown: &Shown) {
        self.shown += 1;
        let (mark, color) = if came_true {
            ("✔", GOOD)
        } else {
            ("✘", BAD)
        };
        if !came_true {
            self.failed.push(title);
        }
        let Shown {
            asked,
            answer,
            decided,
        } = shown;
        anstream::println!(
            "{color}{mark}{color:#} {title:<32} {asked} → {BOLD}{answer}{BOLD:#} {DIM}· {decided}{DIM:#}"
        );
    }

    /// Tells where to look at what was left running.
    pub(crate) fn kept(&self, world: &World) {
        anstream::println!(
            "\nStill running, in `{}`. Ctrl-C ends it.",
            world.folder().display()
        );
    }

    /// The last line, and the verdict on the whole.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        let good = self.shown - self.failed.len();
        anstream::println!("\n{BOLD}{good} of {} came true{BOLD:#}", self.shown);
        ensure!(
            self.failed.is_empty(),
            "not as it should be: {}",
            self.failed.join(", ")
        );
        Ok(())
    }
}

/// The three things a line tells.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) asked: String,
    pub(crate) answer: String,
    pub(crate) decided: String,
}

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();
