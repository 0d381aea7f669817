//! What annotations and labels of a pod ask for: our own, and those of Istio and Linkerd where they
//! mean the same here. Whatever else those two would read is told by name, so that nobody believes
//! in a setting that does nothing.

use std::{collections::HashSet, net::IpAddr};

use ipnet::IpNet;
use postern_policies::diagnostic::{Place, Problems};

use super::{
    meaning::{Meaning, OWN, is_of_a_mesh, meaning},
    options::Options,
    sidecar::HEALTH_PORT,
    spot::Spot,
};
use crate::netns::{OWN_PORTS, PortRange, Ranges, network};

/// What one pod gets.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) uid: u32,
    pub(super) open_ports: Ranges,
    pub(super) direct_ports: Ranges,
    pub(super) direct_networks: Vec<IpNet>,
    pub(super) resolvers: Vec<IpAddr>,
    pub(super) resources: Resources,
}

/// Quantities, as Kubernetes writes them.
#[derive(Debug, Clone)]
pub(super) struct Resources {
    pub(super) cpu_request: String,
    pub(super) cpu_limit: String,
    pub(super) memory_request: String,
    pub(super) memory_limit: String,
}

/// An annotation or a label that concerns a mesh.
#[derive(Debug, Clone)]
pub(super) struct Said<'t> {
    name: &'t str,
    /// Absent where it is no string.
    text: Option<&'t str>,
    pub(super) at: Place,
    pub(super) path: String,
}

/// Reads what was said. `None` says that the pod wants no sidecar, or that a mistake was told.
pub(super) fn read(
    all: &[Said<'_>],
    at: Place,
    options: &Options,
    problems: &mut Problems<'_>,
) -> Option<Wanted> {
    let mut reading = Reading {
        wanted: Wanted {
            uid: options.proxy_uid,
            open_ports: Ranges::default(),
            direct_ports: Ranges::default(),
            direct_networks: options.direct_networks.clone(),
            resolvers: options.resolvers.clone(),
            resources: Resources::default(),
        },
        open: options.open_ports.clone(),
        direct: options.direct_ports.clone(),
        is_wrong: false,
    };
    if !is_wanted(all, problems)? {
        return None;
    }
    for said in all {
        reading.take(said, problems);
    }
    reading.finish(at, problems)
}

/// What metadata says to a mesh; of two with one name the label counts, as in Istio. Labels of
/// Compose may be a list of `name=value`.
pub(super) fn said<'t>(metadata: &Spot<'t>) -> Vec<Said<'t>> {
    let mut all: Vec<Said<'t>> = Vec::new();
    let mut names = HashSet::new();
    for field in ["labels", "annotations"] {
        let Some(field) = metadata.get(field) else {
            continue;
        };
        let items = field.items().into_iter().filter_map(|item| {
            let (name, text) = item.text()?.split_once('=')?;
            Some(Said::new(name, Some(text), &item))
        });
        let entries = field.entries().into_iter();
        let entries = entries.map(|(name, value)| Said::new(name, value.string(), &value));
        for said in items.chain(entries) {
            if is_of_a_mesh(said.name) && names.insert(said.name) {
                all.push(said);
            }
        }
    }
    all
}

impl<'t> Said<'t> {
    fn new(name: &'t str, text: Option<&'t str>, spot: &Spot<'t>) -> Self {
        Self {
            name,
            text,
            at: spot.at,
            path: spot.path.clone(),
        }
    }

    fn string(&self, problems: &mut Problems<'_>) -> Option<&'t str> {
        if self.text.is_none() {
            let told = format!("`{}` must be a string", self.path);
            problems.error_with(self.at, told, "put it in quotes");
        }
        self.text
    }
}

/// Does the pod want a sidecar? Who asks for injection means all pods that do not say no.
fn is_wanted(all: &[Said<'_>], problems: &mut Problems<'_>) -> Option<bool> {
    let mut first: Option<(bool, &Said<'_>)> = None;
    for said in all {
        if !matches!(meaning(said.name), Some(Meaning::Inject)) {
            continue;
        }
        let says = inject_word(said, problems)?;
        if said.name == OWN {
            return Some(says);
        }
        match first {
            Some((other, first)) if other != says => {
                problems.error_with(
                    said.at,
                    format!("`{}` contradicts `{}`", said.path, first.path),
                    format!(
                        "write `{OWN}: enabled` or `{OWN}: disabled`, which counts before both"
                    ),
                );
                return None;
            }
            _ => first = Some((says, said)),
        }
    }
    Some(first.is_none_or(|(says, _)| says))
}

fn inject_word(said: &Said<'_>, problems: &mut Problems<'_>) -> Option<bool> {
    let text = said.string(problems)?;
    match text.to_ascii_lowercase().as_str() {
        "enabled" | "true" | "yes" | "y" | "on" => Some(true),
        "disabled" | "false" | "no" | "n" | "off" => Some(false),
        _ => {
            let told = format!("`{}` is `{text}`, which is neither yes nor no", said.path);
            problems.error_with(said.at, told, "write `enabled` or `disabled`");
            None
        }
    }
}

/// What has been read so far.
struct Reading {
    wanted: Wanted,
    open: Vec<PortRange>,
    direct: Vec<PortRange>,
    is_wrong: bool,
}

impl Reading {
    fn take(&mut self, said: &Said<'_>, problems: &mut Problems<'_>) {
        let Some(meaning) = meaning(said.name) else {
            problems.warn(
                said.at,
                format!("`{}` is not honoured here", said.path),
                "docs/kubernetes.md lists what is",
            );
            return;
        };
        let Some(text) = said.string(problems) else {
            self.is_wrong = true;
            return;
        };
        if let Err(why) = self.mean(meaning, text, said, problems) {
            problems.error(said.at, format!("`{}`: {why}", said.path));
            self.is_wrong = true;
        }
    }

    fn mean(
        &mut self,
        meaning: Meaning,
        text: &str,
        said: &Said<'_>,
        problems: &mut Problems<'_>,
    ) -> Result<(), String> {
        match meaning {
            Meaning::Inject | Meaning::Nothing => {}
            Meaning::OpenPorts => {
                for one in parts(text) {
                    self.open.push(open_port(one)?);
                }
            }
            Meaning::CapturedPorts if text.trim() == "*" => {}
            Meaning::CapturedPorts => {
                let captured = Ranges::of(ports(text)?);
                let own = OWN_PORTS.iter().chain([&HEALTH_PORT]);
                let own = own.fold(captured, |ranges, port| ranges.with(Some(*port)));
                self.open.extend(own.others());
                problems.warn(
                    said.at,
                    format!("`{}` leaves all other ports of the pod open: they are reached without identity and without policy", said.path),
                    "leave it out, and name single ports in `excludeInboundPorts`",
                );
            }
            Meaning::DirectPorts => {
                self.direct.extend(ports(text)?);
                if Ranges::of(self.direct.clone()).others().is_empty() {
                    return Err(NOTHING_LEFT.to_owned());
                }
            }
            Meaning::DirectNetworks => {
                let networks = &mut self.wanted.direct_networks;
                for one in parts(text) {
                    networks.push(direct_network(one)?);
                }
                let whole = IpNet::aggregate(networks);
                if whole.iter().any(|network| network.prefix_len() == 0) {
                    return Err(NOTHING_LEFT.to_owned());
                }
            }
            Meaning::Uid => {
                self.wanted.uid = match text.parse() {
                    Ok(uid) if (1..u32::MAX).contains(&uid) => uid,
                    _ => return Err(format!("`{text}` is no user but root: a number from 1")),
                };
            }
            Meaning::CpuRequest => self.wanted.resources.cpu_request = quantity(text)?,
            Meaning::CpuLimit => self.wanted.resources.cpu_limit = quantity(text)?,
            Meaning::MemoryRequest => self.wanted.resources.memory_request = quantity(text)?,
            Meaning::MemoryLimit => self.wanted.resources.memory_limit = quantity(text)?,
            Meaning::Only(value) if text == value => {}
            Meaning::Only(value) => problems.warn(
                said.at,
                format!("`{}: {text}` is not honoured here", said.path),
                format!("it is always as with `{value}`"),
            ),
            Meaning::Injected(mesh) => {
                return Err(format!(
                    "the pod has the sidecar of {mesh} already: give it one of the two"
                ));
            }
        }
        Ok(())
    }

    /// Puts together what only makes sense together.
    fn finish(mut self, at: Place, problems: &mut Problems<'_>) -> Option<Wanted> {
        self.wanted.open_ports = Ranges::of(self.open);
        self.wanted.direct_ports = Ranges::of(self.direct);
        if let Err(why) = self.wanted.resources.fit() {
            problems.error(at, why);
            self.is_wrong = true;
        }
        (!self.is_wrong).then_some(self.wanted)
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu_request: "10m".to_owned(),
            cpu_limit: "1".to_owned(),
            memory_request: "64Mi".to_owned(),
            memory_limit: "128Mi".to_owned(),
        }
    }
}

impl Resources {
    /// A request that is more than our limit raises it; one that is more than a limit which somebody
    /// wrote is his mistake, and a limit below our request lowers that.
    fn fit(&mut self) -> Result<(), String> {
        let usual = Self::default();
        let pairs = [
            (
                "CPU",
                (&mut self.cpu_request, usual.cpu_request),
                (&mut self.cpu_limit, usual.cpu_limit),
            ),
            (
                "memory",
                (&mut self.memory_request, usual.memory_request),
                (&mut self.memory_limit, usual.memory_limit),
            ),
        ];
        for (what, (request, usual_request), (limit, usual_limit)) in pairs {
            if amount(request) <= amount(limit) {
                continue;
            }
            if *limit == usual_limit {
                limit.clone_from(request);
            } else if *request == usual_request {
                request.clone_from(limit);
            } else {
                return Err(format!(
                    "the proxy's request of {what}, `{request}`, is more than its limit, `{limit}`"
                ));
            }
        }
        Ok(())
    }
}

fn ports(text: &str) -> Result<Vec<PortRange>, String> {
    parts(text).map(str::parse).collect()
}

/// A port that may be reached without the proxy: none of the proxy's own.
pub(super) fn open_port(text: &str) -> Result<PortRange, String> {
    let range: PortRange = text.parse()?;
    let mut own = OWN_PORTS.iter();
    match own.find(|port| (range.first..=range.last).contains(port)) {
        Some(port) => Err(format!("{port} is the proxy's own: leave it out")),
        None => Ok(range),
    }
}

/// A network that may be reached without the proxy: not all of them.
pub(super) fn direct_network(text: &str) -> Result<IpNet, String> {
    let network = network(text)?;
    match network.prefix_len() {
        0 => Err(NOTHING_LEFT.to_owned()),
        _ => Ok(network),
    }
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

fn quantity(text: &str) -> Result<String, String> {
    match amount(text) {
        Some(amount) if amount > 0.0 => Ok(text.to_owned()),
        _ => Err(format!(
            "`{text}` is no quantity: write it as `100m`, `64Mi` or `1`"
        )),
    }
}

/// Spec: Kubernetes API, resource.Quantity, without its form with an exponent.
fn amount(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let is_number = digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    let factor = match text.get(digits.len()..)? {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let number: f64 = digits.parse().ok().filter(|_| is_number)?;
    Some(number * factor)
}

const NOTHING_LEFT: &str = "that is all of them, and nothing would go through the proxy";

#[cfg(test)]
mod tests {
    use super::{Resources, amount};

    #[test]
    fn quantities_are_compared_by_what_they_mean() {
        assert_eq!(amount("100m"), Some(0.1));
        assert_eq!(amount("64Mi"), Some(67_108_864.0));
        for text in ["", "m", "1.2.3", "-1", "1e3x", "many", "1 Gi", "inf", "NaN"] {
            assert_eq!(amount(text), None, "{text}");
        }
        let mut resources = Resources {
            memory_request: "256Mi".to_owned(),
            cpu_limit: "5m".to_owned(),
            ..Resources::default()
        };
        resources.fit().unwrap();
        assert_eq!(resources.memory_limit, "256Mi");
        assert_eq!(resources.cpu_request, "5m");
        resources.memory_limit = "200Mi".to_owned();
        assert!(resources.fit().unwrap_err().contains("`200Mi`"));
    }
}
