//! Holds the help of a command line to its word: every command that is shown has an example of its
//! own, and each example is one that the same command line takes.
//!
//! Pure: nothing is run. It knows clap's definitions, and as much of a shell as examples have of it.

#![forbid(unsafe_code)]

use clap::{ArgMatches, Command};

/// Every mistake in the examples of a program: commands without one, and examples that do not parse
/// or are another command's. `parse` is how the program reads its words; the first is its name.
/// `other_names` are what else an example may begin with, such as an alias of Cargo.
pub fn mistakes(
    command: &Command,
    other_names: &[&str],
    parse: impl Fn(&[String]) -> Result<ArgMatches, clap::Error>,
) -> Vec<String> {
    let mut look = Look {
        program: command.get_name().to_owned(),
        other_names,
        parse,
        found: Vec::new(),
    };
    look.command(command, &mut Vec::new());
    look.found
}

struct Look<'n, P> {
    program: String,
    other_names: &'n [&'n str],
    parse: P,
    found: Vec<String>,
}

impl<P: Fn(&[String]) -> Result<ArgMatches, clap::Error>> Look<'_, P> {
    /// `path` leads to the command, without the program.
    fn command(&mut self, command: &Command, path: &mut Vec<String>) {
        let help = command.get_after_help().map(ToString::to_string);
        let examples = self.examples(&help.unwrap_or_default());
        let name = [std::slice::from_ref(&self.program), path.as_slice()]
            .concat()
            .join(" ");
        let mut has_own = false;
        for example in &examples {
            match (self.parse)(example) {
                Err(error) => {
                    let why = error.to_string();
                    let why = why.lines().next().unwrap_or_default();
                    let shown = example.join(" ");
                    self.found.push(format!("`{name}`: `{shown}`: {why}"));
                }
                Ok(matches) => has_own |= path_of(&matches).starts_with(path),
            }
        }
        if !has_own {
            self.found
                .push(format!("`{name}` has no example of its own"));
        }
        let shown = command.get_subcommands().filter(|one| !one.is_hide_set());
        for subcommand in shown.filter(|one| one.get_name() != "help") {
            path.push(subcommand.get_name().to_owned());
            self.command(subcommand, path);
            path.pop();
        }
    }

    /// The words of each example. Lines that begin with another word are not ours to judge, such as
    /// pieces of manifests.
    fn examples(&self, help: &str) -> Vec<Vec<String>> {
        let (_, after) = help.split_once("Examples:\n").unwrap_or_default();
        let pieces = after.split("\\\n").map(str::trim);
        let joined = pieces.collect::<Vec<_>>().join(" ");
        let lines = joined.lines().map(str::trim_start);
        let lines = lines.map(with_outputs);
        lines.filter_map(|line| self.invocation(&line)).collect()
    }

    fn invocation(&self, line: &str) -> Option<Vec<String>> {
        let names = self
            .other_names
            .iter()
            .copied()
            .chain([self.program.as_str()]);
        let mut rests = names.filter_map(|name| line.strip_prefix(name));
        let rest = rests.find(|rest| rest.is_empty() || rest.starts_with(' '))?;
        let mut words = vec![self.program.clone()];
        words.extend(split(rest));
        Some(words)
    }
}

/// The names of the commands that were matched, from the outermost on.
fn path_of(matches: &ArgMatches) -> Vec<String> {
    let mut path = Vec::new();
    let mut matches = matches;
    while let Some((name, inner)) = matches.subcommand() {
        path.push(name.to_owned());
        matches = inner;
    }
    path
}

/// What a command between `$(` and `)` would print is a number to us: it is taken by most values.
fn with_outputs(line: &str) -> String {
    let mut parts = line.split("$(");
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        filled.push('1');
        filled.push_str(part.split_once(')').map_or("", |(_, rest)| rest));
    }
    filled
}

/// The words of a line up to the next command, a redirection or a comment, quotes taken away. What
/// stands behind three blanks is said to the reader.
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut blanks = 0;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ') => {
                blanks += 1;
                if blanks == 3 {
                    break;
                }
                words.extend(word.take());
                continue;
            }
            (None, '|' | '>' | '<' | '&' | ';' | '#') if word.is_none() => break,
            _ => word.get_or_insert_default().push(c),
        }
        blanks = 0;
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    use super::{mistakes, split};

    fn program(help: &'static str, of_inner: &'static str) -> Command {
        let inner = Command::new("show").arg(Arg::new("name").required(true));
        let hidden = Command::new("secret").hide(true);
        Command::new("prog")
            .after_help(help)
            .subcommand(inner.after_help(of_inner))
            .subcommand(hidden)
    }

    #[track_caller]
    fn check(help: &'static str, of_inner: &'static str, expected: &[&str]) {
        let command = program(help, of_inner);
        let parse = |words: &[String]| command.clone().try_get_matches_from(words);
        let found = mistakes(&command, &["cargo prog"], parse);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "`{expected}` in `{found}`");
        }
    }

    #[test]
    fn every_command_has_an_example_and_each_parses() {
        let own = "Examples:\n  prog show a > file";
        check("Examples:\n  cargo prog show a   what it does", own, &[]);
        check(own, "Examples:\n  prog show \\\n      a", &[]);
        check(own, "Examples:\n  prog show \"$(id -u 'a b')\"", &[]);
        check("", own, &["`prog` has no example"]);
        check(own, "", &["`prog show` has no example"]);
        check(
            own,
            "Examples:\n  prog show",
            &["required", "`prog show` has no"],
        );
        check(
            own,
            "Examples:\n  prog shwo a",
            &["unrecognized", "`prog show` has no"],
        );
        check(
            own,
            "Examples:\n  prog secret",
            &["`prog show` has no example"],
        );
        check(
            own,
            "Examples:\n  program show a",
            &["`prog show` has no example"],
        );
        check(
            own,
            "Examples:\n  prog show a\n  prog show --no a",
            &["unexpected"],
        );
    }

    #[test]
    fn words_end_where_the_command_does() {
        for (line, expected) in [
            (" a b", &["a", "b"] as &[&str]),
            (" a 'b c' \"d\"", &["a", "b c", "d"]),
            (" a | b", &["a"]),
            (" a > b", &["a"]),
            (" -- sh -c 'id; x'", &["--", "sh", "-c", "id; x"]),
            (" a   and so on", &["a"]),
            (" a ''", &["a", ""]),
        ] {
            assert_eq!(split(line), expected, "{line}");
        }
    }
}
