//! What a service of Compose mounts of the machine: by `volumes`, by volumes that are folders in
//! truth, by those of other services, and by files of secrets and configurations.

use super::{
    mounts::{Danger, danger},
    spot::Spot,
};

/// What is to be told, and where it stands.
pub(super) type Told<'t> = (Spot<'t>, Danger);

/// Every mount of a service that gives it too much.
pub(super) fn dangers<'t>(root: &Spot<'t>, service: &Spot<'t>) -> Vec<Told<'t>> {
    let mut look = Look {
        root,
        told: Vec::new(),
        seen: Vec::new(),
    };
    look.service(service);
    look.told
}

struct Look<'l, 't> {
    root: &'l Spot<'t>,
    told: Vec<Told<'t>>,
    /// Services whose volumes were looked at: one may take those of another that takes its own.
    seen: Vec<String>,
}

impl<'t> Look<'_, 't> {
    fn service(&mut self, service: &Spot<'t>) {
        if self.seen.contains(&service.path) {
            return;
        }
        self.seen.push(service.path.clone());
        for volume in service.list("volumes") {
            self.volume(volume);
        }
        for kind in ["secrets", "configs"] {
            for used in service.list(kind) {
                let name = used.text_of("source").or_else(|| used.text());
                let file = name.and_then(|name| self.root.at(&[kind, name, "file"]));
                if let Some(file) = file {
                    self.path(&file, file.text().unwrap_or_default(), false);
                }
            }
        }
        if let Some(field) = service.get("use_api_socket").filter(Spot::may_be_true) {
            let why = "is on: the container asks the engine for others without walls";
            self.told.push((field, Danger::Undoes(why.to_owned())));
        }
        for from in service.list("volumes_from") {
            self.of_another(from);
        }
    }

    fn of_another(&mut self, from: Spot<'t>) {
        let text = from.text().unwrap_or_default();
        let name = text.split(':').next().unwrap_or_default();
        let other = match text.starts_with("container:") {
            true => None,
            false => self.root.at(&["services", name]),
        };
        match other {
            Some(other) => self.service(&other),
            None => {
                let why = "takes volumes of a container that is not in this file";
                self.told.push((from, Danger::Shows(why.to_owned())));
            }
        }
    }

    fn volume(&mut self, volume: Spot<'t>) {
        if volume.map().is_some() {
            let is_read_only = volume
                .get("read_only")
                .filter(|field| field.text() == Some("true"));
            if let Some(source) = volume.get("source").or_else(|| volume.get("src")) {
                self.source(
                    &source,
                    source.text().unwrap_or_default(),
                    is_read_only.is_none(),
                );
            }
            return;
        }
        let text = volume.text().unwrap_or_default();
        let Some((source, rest)) = divided(text) else {
            // A volume without a name, which is empty.
            return;
        };
        let mode = divided(rest).map_or("", |(_, mode)| mode);
        let is_read_only = mode.split(',').any(|word| word == "ro");
        self.source(&volume, source, !is_read_only);
    }

    /// A path, or the name of a volume.
    fn source(&mut self, field: &Spot<'t>, source: &str, is_written: bool) {
        if source.starts_with(['/', '.', '~', '$']) {
            self.path(field, source, is_written);
            return;
        }
        let device = self.root.at(&["volumes", source, "driver_opts", "device"]);
        if let Some(device) = device {
            self.path(&device, device.text().unwrap_or_default(), is_written);
        }
    }

    fn path(&mut self, field: &Spot<'t>, path: &str, is_written: bool) {
        let (filled, has_variables) = filled(path);
        if filled.starts_with('/') {
            let found = danger(&filled, is_written);
            let undoes = matches!(found, Some(Danger::Undoes(_)));
            self.told.extend(found.map(|found| (field.clone(), found)));
            if undoes {
                return;
            }
        }
        if has_variables {
            let why = "is a path with a variable, which is not looked into";
            self.told
                .push((field.clone(), Danger::Shows(why.to_owned())));
        }
    }
}

/// What stands before and behind the first colon that is not within `${…}`.
fn divided(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0_usize;
    let colon = text.bytes().position(|byte| {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        byte == b':' && depth == 0
    })?;
    Some((text.get(..colon)?, text.get(colon + 1..)?))
}

/// A text with the defaults of its variables, `${NAME:-default}`, and nothing where they have none;
/// and whether it has any.
///
/// Spec: Compose, interpolation.
fn filled(text: &str) -> (String, bool) {
    let mut filled = String::new();
    let mut has_variables = false;
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        filled.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            filled.push('$');
            rest = after;
            continue;
        }
        has_variables = true;
        rest = match after
            .strip_prefix('{')
            .and_then(|inner| inner.split_once('}'))
        {
            Some((inner, behind)) => {
                let default = inner.split_once('-').map_or("", |(_, default)| default);
                filled.push_str(default);
                behind
            }
            None => after.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_'),
        };
    }
    filled.push_str(rest);
    (filled, has_variables)
}

#[cfg(test)]
mod tests {
    use super::{divided, filled};

    #[test]
    fn variables_have_their_defaults() {
        for (text, expected, has) in [
            ("/srv", "/srv", false),
            ("/a$$b", "/a$b", false),
            ("${DATA:-/}", "/", true),
            ("${DATA-/proc}/1", "/proc/1", true),
            ("$ROOT/var", "/var", true),
            ("${ROOT}/run", "/run", true),
            ("${ROOT:?set it}/run", "/run", true),
            ("${ROOT", "{ROOT", true),
        ] {
            assert_eq!(filled(text), (expected.to_owned(), has), "{text}");
        }
    }

    #[test]
    fn a_colon_of_a_variable_divides_nothing() {
        assert_eq!(divided("${A:-/}:/a:ro"), Some(("${A:-/}", "/a:ro")));
        assert_eq!(divided("/a:/b"), Some(("/a", "/b")));
        assert_eq!(divided("/a"), None);
    }
}
