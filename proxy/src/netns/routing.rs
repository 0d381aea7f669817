//! Policy routing for `--mode tproxy`: what carries the mark is delivered here, whatever address it
//! is for. Pure.

use super::apply::Step;

/// The mark of packets that are handed over to the proxy; the kernel removes it from whatever
/// leaves the namespace.
pub(crate) const MARK: &str = "0x539";

/// The families of the Internet Protocol that the namespace speaks, as `ip` names them.
pub(crate) const FAMILIES: [&str; 2] = ["-4", "-6"];

/// Whether the answer of `ip rule show` has our rule.
pub(crate) fn has_rule(shown: &str) -> bool {
    let ends = format!("fwmark {MARK} lookup {TABLE}");
    shown.lines().any(|line| line.trim_end().ends_with(&ends))
}

/// The way for marked packets. The route comes first, so that the rule leads somewhere.
pub(crate) fn add(family: &'static str, has_rule: bool) -> Vec<Step> {
    let mut steps = vec![ip(
        family,
        &[
            "route", "replace", "local", "default", "dev", "lo", "table", TABLE,
        ],
    )];
    if !has_rule {
        steps.push(ip(
            family,
            &["rule", "add", "fwmark", MARK, "lookup", TABLE],
        ));
    }
    steps
}

/// Takes it away.
pub(crate) fn remove(family: &'static str) -> Vec<Step> {
    vec![
        ip(family, &["rule", "delete", "fwmark", MARK, "lookup", TABLE]),
        ip(family, &["route", "flush", "table", TABLE]),
    ]
}

fn ip(family: &'static str, arguments: &[&str]) -> Step {
    let mut all = vec![family.to_owned()];
    all.extend(arguments.iter().map(|&argument| argument.to_owned()));
    Step {
        program: "ip",
        arguments: all,
        input: None,
    }
}

const TABLE: &str = "133";

#[cfg(test)]
mod tests {
    use super::has_rule;

    #[test]
    fn only_our_rule_is_ours() {
        let others = "0:\tfrom all lookup local\n32766:\tfrom all lookup main\n";
        assert!(!has_rule(others));
        assert!(!has_rule("100:\tfrom all fwmark 0x539 lookup 1337\n"));
        assert!(!has_rule("100:\tfrom all fwmark 0x5390 lookup 133\n"));
        assert!(has_rule(&format!(
            "{others}32765:\tfrom all fwmark 0x539 lookup 133 \n"
        )));
    }
}
