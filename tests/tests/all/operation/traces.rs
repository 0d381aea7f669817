//! A request's trace, from its caller through both proxies to the app.

use serde_json::Value;

use super::Pair;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// The values of a field that the app got.
fn fields(head: &str, name: &str) -> Vec<String> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let named = lines.filter(|(field, _)| *field == name);
    named.map(|(_, value)| value.to_owned()).collect()
}

/// Trace, parent and flags of what the app got.
#[track_caller]
fn parent(head: &str) -> [String; 3] {
    let [field] = fields(head, "traceparent").try_into().expect(head);
    let parts: Vec<String> = field.split('-').map(str::to_owned).collect();
    let [version, parts @ ..] = <[String; 4]>::try_from(parts).unwrap();
    assert_eq!(version, "00");
    parts
}

#[track_caller]
fn text<'v>(line: &'v Value, name: &str) -> &'v str {
    line[name].as_str().unwrap_or_default()
}

#[test]
fn a_trace_leads_from_the_caller_through_both_proxies_to_the_app() {
    let pair = Pair::start();
    for (version, path) in [
        ("--http1.1", "/api/one"),
        ("--http2-prior-knowledge", "/api/two"),
    ] {
        let said = format!("traceparent: 00-{TRACE}-{SPAN}-01");
        let head = pair.ask(&[version, "-H", &said, "-H", "tracestate: a=1,b=2"], path);
        let [trace, span, flags] = parent(&head);
        assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"), "{head}");
        assert_eq!(fields(&head, "tracestate"), ["a=1,b=2"]);
        // Each step names the one before.
        let (first, second) = (pair.logged("frontend", path), pair.logged("web", path));
        assert_eq!(text(&first, "trace_id"), TRACE, "{first}");
        assert_eq!(text(&first, "parent_span_id"), SPAN);
        assert_eq!(text(&second, "trace_id"), TRACE);
        assert_eq!(text(&second, "parent_span_id"), text(&first, "span_id"));
        assert_eq!(text(&second, "span_id"), span);
        assert_ne!(text(&first, "span_id"), span);
    }
    // Its twin belongs to no trace: one is begun where it comes from.
    let head = pair.ask(&[], "/api/none");
    let (first, second) = (
        pair.logged("frontend", "/api/none"),
        pair.logged("web", "/api/none"),
    );
    assert_eq!(parent(&head).first().unwrap(), text(&first, "trace_id"));
    assert_eq!(text(&first, "trace_id"), text(&second, "trace_id"));
    assert_eq!(first["parent_span_id"], Value::Null);
}

#[test]
fn what_is_no_trace_is_replaced_on_either_road_and_its_state_dropped() {
    let pair = Pair::start();
    let valid = format!("traceparent: 00-{TRACE}-{SPAN}-01");
    let state = ["-H", "tracestate: a=1"];
    let wrong = [
        vec![format!(
            "traceparent: 00-{}-{SPAN}-01",
            TRACE.to_uppercase()
        )],
        vec![format!("traceparent: ff-{TRACE}-{SPAN}-01")],
        vec![format!("traceparent: 00-{TRACE}-0000000000000000-01")],
        vec![format!("traceparent: 00-{}-{SPAN}-01", "0".repeat(32))],
        vec![format!("traceparent: 00-{TRACE}-{SPAN}-01-more")],
        vec![valid.clone(), valid.clone()],
    ];
    for fields_of in wrong {
        for ask in [Pair::ask, Pair::ask_web] {
            let mut arguments = state.to_vec();
            arguments.extend(fields_of.iter().flat_map(|field| ["-H", field.as_str()]));
            let head = ask(&pair, &arguments, "/api/x");
            let [trace, _, flags] = parent(&head);
            assert_ne!(trace.to_lowercase(), TRACE, "{fields_of:?}");
            assert_ne!(trace, "0".repeat(32));
            assert_eq!(flags, "00");
            assert!(fields(&head, "tracestate").is_empty(), "{head}");
        }
    }
    // A state beyond the limits goes, its trace stays; and one within them stays.
    for (members, kept) in [(33, 0), (32, 1)] {
        let members: Vec<String> = (0..members).map(|number| format!("a{number}=1")).collect();
        let state = format!("tracestate: {}", members.join(","));
        for ask in [Pair::ask, Pair::ask_web] {
            let head = ask(&pair, &["-H", &valid, "-H", &state], "/api/x");
            assert_eq!(parent(&head).first().unwrap(), TRACE);
            assert_eq!(fields(&head, "tracestate").len(), kept, "{head}");
        }
    }
}

#[test]
fn a_refused_request_is_found_by_its_trace_as_well() {
    let pair = Pair::start();
    let said = format!("traceparent: 00-{TRACE}-{SPAN}-01");
    // By a policy, and before any policy is asked.
    for (path, logged) in [("/admin", "/admin"), ("/a%2fb", "/a%2fb")] {
        pair.ask_web(&["-H", &said, "--path-as-is"], path);
        let line = pair.logged("web", logged);
        assert_eq!(text(&line, "verdict"), "deny", "{line}");
        assert_eq!(text(&line, "trace_id"), TRACE, "{line}");
    }
}
