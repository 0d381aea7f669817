//! Policies that are replaced while the proxy serves: mistakes change nothing, good ones hold at once.

use std::fs;

use postern_tests::eventually;

use super::inbound::Site;

const CURRENT: &str = "postern_proxy_policies_current ";
const FAILED: &str = "postern_proxy_policy_reloads_failed_total ";

#[test]
fn a_mistake_of_any_kind_changes_nothing_and_is_counted_until_it_is_mended() {
    // FAULTS 124
    let site = Site::start();
    site.leaf(|_| {});
    let folder = site.world.path().join("policies");
    let good = fs::read_to_string(folder.join("web-authorization.yaml")).unwrap();
    let half = good.split_at(good.len() / 2).0;
    let unknown = good.replace("spec:", "spec:\n  actoin: ALLOW");
    assert_ne!(unknown, good);
    let mistakes = [
        ("an unknown key", unknown.as_str()),
        ("bad syntax", "kind: [\n"),
        (
            "a kind of document that nobody knows",
            "apiVersion: v1\nkind: Pod\n",
        ),
        ("what was half written", &format!("{half}\n  {{")),
    ];
    for (mistake, text) in mistakes {
        let before = site.metric(FAILED);
        site.world
            .write("policies/web-authorization.yaml", text)
            .unwrap();
        eventually(mistake, || (site.metric(CURRENT) == 0.0).then_some(())).unwrap();
        assert!(site.metric(FAILED) > before, "{mistake}");
        assert_eq!(site.curl(&[], "/api/v1/orders"), 200, "{mistake}");
        assert_eq!(site.curl(&[], "/admin"), 403, "{mistake}");
        // By a rename, as programs replace files that others read.
        let new = site.world.write("new.yaml", &good).unwrap();
        fs::rename(new, folder.join("web-authorization.yaml")).unwrap();
        eventually("the mend", || (site.metric(CURRENT) == 1.0).then_some(())).unwrap();
    }
    // A file that is gone is no mistake: what it allowed is allowed no more.
    fs::remove_file(folder.join("web-authorization.yaml")).unwrap();
    eventually("the refusal", || {
        (site.curl(&[], "/api/v1/orders") != 200).then_some(())
    })
    .unwrap();
    assert_eq!(site.metric(CURRENT), 1.0);
}
