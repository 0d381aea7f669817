//! What the variables mean.

use std::time::Duration;

use super::{numbered, watchdog};

const OWN: u32 = 4711;

#[track_caller]
fn check(pid: &str, count: &str, names: Option<&str>, expected: Result<&[(i32, &str)], &str>) {
    let listen = [pid, count].map(|text| (!text.is_empty()).then(|| text.to_owned()));
    let found = numbered(OWN, listen, names).map_err(|error| error.to_string());
    match (found, expected) {
        (Ok(found), Ok(expected)) => {
            let found: Vec<(i32, &str)> = found.iter().map(|(n, name)| (*n, &**name)).collect();
            assert_eq!(found, expected);
        }
        (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
        (found, expected) => panic!("{found:?}, not {expected:?}"),
    }
}

#[test]
fn descriptors_are_counted_from_three_and_named_in_order() {
    check("4711", "2", Some("a:b"), Ok(&[(3, "a"), (4, "b")]));
    check("4711", "1", None, Ok(&[(3, "")]));
    check("4711", "2", Some(":b"), Ok(&[(3, ""), (4, "b")]));
    check("4711", "0", None, Ok(&[]));
    check("4711", "0", Some(""), Ok(&[]));
}

#[test]
fn what_was_given_to_another_process_is_not_ours() {
    check("4712", "2", Some("a:b"), Ok(&[]));
    check("4712", "many", None, Ok(&[]));
    check("", "2", Some("a:b"), Ok(&[]));
    check("4711", "", Some("a:b"), Ok(&[]));
}

#[test]
fn variables_that_make_no_sense_are_named() {
    check("we", "2", None, Err("`we` in LISTEN_PID"));
    check("-1", "2", None, Err("`-1` in LISTEN_PID"));
    check("4711", "two", None, Err("`two` in LISTEN_FDS"));
    check("4711", "-1", None, Err("`-1` in LISTEN_FDS"));
    check("4711", "65", None, Err("65 sockets, and at most 64"));
    check("4711", "99999999999", None, Err("in LISTEN_FDS"));
    check("4711", "2", Some("a"), Err("1 names for 2 descriptors"));
    check("4711", "1", Some("a:b"), Err("2 names for 1 descriptors"));
}

#[test]
fn a_watchdog_is_for_the_process_that_it_names_or_for_everybody() {
    let of = |pid: Option<&str>, micros: Option<&str>| {
        let given = [pid, micros].map(|text| text.map(str::to_owned));
        watchdog(OWN, given).map_err(|error| error.to_string())
    };
    let wait = Ok(Some(Duration::from_secs(3)));
    assert_eq!(of(None, Some("3000000")), wait);
    assert_eq!(of(Some("4711"), Some("3000000")), wait);
    assert_eq!(of(Some("4712"), Some("3000000")), Ok(None));
    assert_eq!(of(Some("4711"), None), Ok(None));
    assert_eq!(of(None, Some("0")), Ok(None));
    assert!(of(None, Some("3s")).is_err_and(|error| error.contains("WATCHDOG_USEC")));
}
