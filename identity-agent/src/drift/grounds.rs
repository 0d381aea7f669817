//! What processes of a pod could do, and where they lived, when they were first seen. Pure.
//!
//! A process is compared with itself, and a new one with its parent. Who comes into a pod from outside, as
//! what a runtime starts there, brings what it has: nothing has grown. The runtime may still be at work on
//! it, so for some seconds the first program is no more than its beginning, and so are the first mounts of
//! a container that has come into a pod.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{
    Kind, Sighting,
    standing::{NAMESPACES, Parent, Rights, Standing, View},
};
use crate::attest::{Pod, capabilities};

/// What is known of the processes of pods that have a baseline.
#[derive(Debug, Default)]
pub(super) struct Grounds {
    /// The pods of which all processes were looked at.
    known: HashSet<Pod>,
    /// The pods whose mounts were looked at.
    mounted: HashSet<Pod>,
    members: HashMap<i32, Member>,
    tables: HashMap<(Pod, View), Table>,
}

#[derive(Debug, Clone)]
struct Member {
    pod: Pod,
    started: u64,
    program: String,
    /// The least that it was seen with.
    rights: Rights,
    /// What it had before it gave something up, and until when at most: who was started until then may
    /// have it too.
    before: Option<(Rights, u64)>,
    namespaces: [u64; NAMESPACES.len()],
    since: Instant,
    is_from_outside: bool,
}

#[derive(Debug)]
struct Table {
    mounts: BTreeSet<String>,
    /// Until then the runtime may still mount.
    unfinished_until: Option<Instant>,
}

/// When something is looked at, by both clocks that are needed.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// To tell how long something is known.
    pub instant: Instant,
    /// In ticks of the clock since the machine was started, as starts of processes are told.
    pub ticks: u64,
}

impl Grounds {
    /// The pod that a process was seen in, or its parent.
    pub(super) fn pod_of(&self, pid: i32, started: u64, parent: Parent) -> Option<Pod> {
        let own = self.member(pid, started);
        let parent = || self.parent(parent, started);
        own.or_else(parent).map(|one| one.pod)
    }

    /// May it have come from outside and not run anything here yet? Nobody in a pod, and no child of one, is.
    pub(super) fn may_be_entering(&self, pid: i32, seen: &Standing, now: Instant) -> bool {
        match self.member(pid, seen.started) {
            Some(own) => {
                own.is_from_outside
                    && own.program == seen.program
                    && now.saturating_duration_since(own.since) < MADE_READY_IN
            }
            None => self.parent(seen.parent, seen.started).is_none(),
        }
    }

    /// Was this very process seen in the pod?
    pub(super) fn has(&self, pod: Pod, pid: i32, started: u64) -> bool {
        self.member(pid, started).is_some_and(|own| own.pod == pod)
    }

    fn member(&self, pid: i32, started: u64) -> Option<&Member> {
        self.members.get(&pid).filter(|one| one.started == started)
    }

    /// The member that has made a process which was started then. One that is younger than its child has got
    /// the number since, and so has one that was not started when the member was.
    fn parent(&self, parent: Parent, started: u64) -> Option<&Member> {
        let is_it = |one: &&Member| {
            one.started <= started && parent.started.is_none_or(|now| now == one.started)
        };
        self.members.get(&parent.pid).filter(is_it)
    }

    /// Is somebody of this number known to be in a pod?
    pub(super) fn is_member(&self, pid: i32) -> bool {
        self.members.contains_key(&pid)
    }

    /// A process has made another one, which has all that it has.
    pub(super) fn forked(&mut self, parent: Parent, child: i32, started: u64, now: Now) {
        if let Some(member) = self.parent(parent, started) {
            let child_of = member.child(started, now.instant);
            self.remember(child, child_of);
        }
    }

    /// What all processes of a pod are. At the first look that is what they may be. Who is not there any
    /// more is forgotten.
    pub(super) fn judge_all(
        &mut self,
        pod: Pod,
        mut all: Vec<(i32, Standing)>,
        now: Now,
    ) -> Vec<Sighting> {
        let seen: HashMap<i32, u64> = all.iter().map(|(pid, one)| (*pid, one.started)).collect();
        // One that an event has told of meanwhile may be too young to be among them.
        let is_there = |pid: &i32, one: &Member| {
            one.pod != pod
                || seen.get(pid) == Some(&one.started)
                || now.instant.saturating_duration_since(one.since) < FORGOTTEN_AFTER
        };
        self.members.retain(|pid, one| is_there(pid, one));
        if self.known.insert(pod) {
            for (pid, one) in &all {
                self.remember(*pid, Member::from_outside(pod, one, now.instant));
            }
            let traced = all.iter().filter_map(|(_, one)| traced(one));
            return traced.collect();
        }
        // Parents before their children.
        all.sort_by_key(|(pid, one)| (one.started, *pid));
        let found = all
            .iter()
            .flat_map(|(pid, one)| self.judge(pod, *pid, one, now));
        found.collect()
    }

    /// What of a process is more than it was, or elsewhere.
    pub(super) fn judge(&mut self, pod: Pod, pid: i32, seen: &Standing, now: Now) -> Vec<Sighting> {
        // Who has come from another pod is judged there.
        let is_strange = |own: &Member| own.has_left(pod);
        if !self.known.contains(&pod) || self.member(pid, seen.started).is_some_and(is_strange) {
            return Vec::new();
        }
        let Some(mut own) = self.origin(pod, pid, seen, now.instant) else {
            let mut first = Member::from_outside(pod, seen, now.instant);
            // The second program is the one that it was made ready for.
            first.is_from_outside = self.member(pid, seen.started).is_none();
            self.remember(pid, first);
            return traced(seen).into_iter().collect();
        };
        let mut found: Vec<Sighting> = own.grown(pid, seen).into_iter().collect();
        found.extend(own.elsewhere(pid, seen));
        found.extend(traced(seen));
        own.lower(seen.rights, now.ticks);
        own.program.clone_from(&seen.program);
        self.remember(pid, own);
        found
    }

    /// With what a process is to be compared; none for one that brings what it has.
    fn origin(&self, pod: Pod, pid: i32, seen: &Standing, now: Instant) -> Option<Member> {
        if let Some(own) = self.member(pid, seen.started).filter(|own| own.pod == pod) {
            let is_made_ready = own.is_from_outside
                && own.program != seen.program
                && now.saturating_duration_since(own.since) < MADE_READY_IN;
            return (!is_made_ready).then(|| own.clone());
        }
        let parent = self.parent(seen.parent, seen.started);
        let parent = parent.filter(|parent| parent.pod == pod)?;
        Some(parent.child(seen.started, now))
    }

    /// What is mounted that was not, and what is gone, in each view of a pod and by who has it. What is
    /// there at the first look may be there. `is_whole` where these are all views that the pod has.
    pub(super) fn judge_mounts(
        &mut self,
        pod: Pod,
        views: Vec<(i32, View, Option<BTreeSet<String>>)>,
        is_whole: bool,
        now: Instant,
    ) -> Vec<Sighting> {
        let is_first = self.mounted.insert(pod);
        let mut found = Vec::new();
        if is_whole {
            // Nobody is left in the others.
            let there: HashSet<View> = views.iter().map(|(_, view, _)| *view).collect();
            self.tables
                .retain(|(of, view), _| *of != pod || there.contains(view));
        }
        let mut of_pod = self.tables.keys().filter(|(of, _)| *of == pod).count();
        for (pid, view, mounts) in views {
            // What was known of it stays: it is compared with that as soon as it can be read again.
            let Some(mounts) = mounts else {
                let what = "mounts that cannot be read".to_owned();
                found.push(sighting(Kind::Mount, what, pid));
                continue;
            };
            let key = (pod, view);
            let known = self.tables.get(&key);
            let unfinished_until = match known {
                None if is_first => None,
                None => Some(now + MADE_READY_IN),
                Some(table) => table.unfinished_until.filter(|end| now < *end),
            };
            match known {
                Some(table) if unfinished_until.is_none() => {
                    let added = mounts.difference(&table.mounts).cloned();
                    let gone = table.mounts.difference(&mounts);
                    let gone = gone.map(|one| format!("{one} is gone"));
                    found.extend(
                        added
                            .chain(gone)
                            .map(|what| sighting(Kind::Mount, what, pid)),
                    );
                }
                // Who makes them without end is not looked at less for it.
                None if of_pod >= MAX_TABLES_OF_POD => {
                    let what = format!("more than {MAX_TABLES_OF_POD} views of mounts");
                    found.push(sighting(Kind::Mount, what, pid));
                }
                None if self.tables.len() >= MAX_TABLES => {}
                _ => {
                    of_pod += usize::from(known.is_none());
                    let table = Table {
                        mounts,
                        unfinished_until,
                    };
                    self.tables.insert(key, table);
                }
            }
        }
        found
    }

    /// Is there more than is remembered? What is beyond is not compared with what it was.
    pub(super) fn are_full(&self) -> bool {
        self.members.len() >= MAX_MEMBERS || self.tables.len() >= MAX_TABLES
    }

    /// A pod has ended.
    pub(super) fn forget(&mut self, pod: Pod) {
        self.known.remove(&pod);
        self.mounted.remove(&pod);
        self.members.retain(|_, one| one.pod != pod);
        self.tables.retain(|(of, _), _| *of != pod);
    }

    /// Beyond the bound nobody is remembered until the next look has forgotten who has ended: they are
    /// compared with their parents.
    fn remember(&mut self, pid: i32, member: Member) {
        let known = self.member(pid, member.started);
        if known.is_some_and(|known| known.has_left(member.pod)) {
            return;
        }
        if self.members.len() < MAX_MEMBERS || self.members.contains_key(&pid) {
            self.members.insert(pid, member);
        }
    }
}

impl Member {
    fn from_outside(pod: Pod, seen: &Standing, now: Instant) -> Self {
        Self {
            pod,
            started: seen.started,
            program: seen.program.clone(),
            rights: seen.rights,
            before: None,
            namespaces: seen.namespaces,
            since: now,
            is_from_outside: true,
        }
    }

    /// What a process of this parent begins with.
    fn child(&self, started: u64, now: Instant) -> Self {
        let before = self.before.filter(|(_, until)| started <= *until);
        Self {
            started,
            rights: before.map_or(self.rights, |(rights, _)| rights),
            before: None,
            since: now,
            is_from_outside: false,
            ..self.clone()
        }
    }

    /// Has it come to this pod from another one? Who makes a session of his own in the network of all has
    /// left nothing.
    fn has_left(&self, pod: Pod) -> bool {
        is_other_place(self.pod, pod)
    }

    fn grown(&self, pid: i32, seen: &Standing) -> Option<Sighting> {
        // In a user namespace of its own it has all rights there, and none here.
        let is_apart = self.namespaces.get(USER) != seen.namespaces.get(USER);
        let more = seen.rights.beyond(self.rights);
        if is_apart || more == Rights::default() {
            return None;
        }
        let mut words = Vec::new();
        if more.is_root {
            words.push("root".to_owned());
        }
        let names: Vec<&str> = capabilities::numbers(more.capabilities)
            .filter_map(capabilities::name)
            .collect();
        match names.as_slice() {
            [] => {}
            names if names.len() <= SHOWN => words.push(names.join(", ")),
            names => words.push(format!("{} capabilities", names.len())),
        }
        let what = format!("{} has become {}", seen.program, words.join(" and "));
        Some(sighting(Kind::Privilege, what, pid))
    }

    fn elsewhere(&self, pid: i32, seen: &Standing) -> Option<Sighting> {
        let pairs = self.namespaces.iter().zip(&seen.namespaces);
        let others = NAMESPACES
            .iter()
            .zip(pairs)
            .filter_map(|(name, (own, now))| {
                let is_known = *own != 0 && *now != 0;
                (is_known && own != now).then_some(*name)
            });
        let others: Vec<&str> = others.collect();
        (!others.is_empty()).then(|| {
            let what = format!(
                "{} in another {} namespace",
                seen.program,
                others.join(", ")
            );
            sighting(Kind::Namespace, what, pid)
        })
    }

    fn lower(&mut self, seen: Rights, ticks: u64) {
        let lowered = self.rights.and(seen);
        if lowered != self.rights {
            self.before = Some((self.rights, ticks));
            self.rights = lowered;
        }
    }
}

/// Is it another network, at least on one side?
pub(crate) fn is_other_place(pod: Pod, other: Pod) -> bool {
    pod != other && !matches!((pod, other), (Pod::Session(_), Pod::Session(_)))
}

fn traced(seen: &Standing) -> Option<Sighting> {
    (seen.tracer != 0).then(|| {
        let what = format!("{} is traced", seen.program);
        // Who traces is who deviates.
        sighting(Kind::Ptrace, what, seen.tracer)
    })
}

/// Something that no rule has seen.
pub(super) fn sighting(kind: Kind, what: String, pid: i32) -> Sighting {
    Sighting {
        kind,
        what,
        rule: None,
        pid,
    }
}

/// In [`NAMESPACES`].
const USER: usize = 5;

/// How many capabilities are named.
const SHOWN: usize = 3;

/// How long a runtime takes to make a container ready, at most.
const MADE_READY_IN: Duration = Duration::from_secs(10);

/// How long somebody is remembered whom a look did not find.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

const MAX_MEMBERS: usize = 100_000;
const MAX_TABLES: usize = 10_000;
const MAX_TABLES_OF_POD: usize = 256;

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        time::{Duration, Instant},
    };

    use super::{
        Grounds, Kind, MADE_READY_IN, MAX_TABLES_OF_POD, NAMESPACES, Now, Parent, Pod, Rights,
        Standing, USER,
    };

    const POD: Pod = Pod::Network(7);
    const ROOT: Rights = Rights {
        is_root: true,
        capabilities: 0b11,
    };
    const NOBODY: Rights = Rights {
        is_root: false,
        capabilities: 0,
    };

    /// Of a parent that has ended since.
    fn gone(pid: i32) -> Parent {
        Parent { pid, started: None }
    }

    fn standing(started: u64, parent: i32, rights: Rights) -> Standing {
        Standing {
            started,
            parent: gone(parent),
            rights,
            namespaces: [9; NAMESPACES.len()],
            tracer: 0,
            program: "/bin/app".into(),
        }
    }

    fn now(ticks: u64) -> Now {
        let instant = Instant::now();
        Now { instant, ticks }
    }

    /// A pod with this process, number 10.
    fn of(first: Rights) -> Grounds {
        let mut grounds = Grounds::default();
        let found = grounds.judge_all(POD, vec![(10, standing(5, 1, first))], now(5));
        assert_eq!(found, []);
        grounds
    }

    #[track_caller]
    fn check(grounds: &mut Grounds, pid: i32, seen: &Standing, expected: &[(Kind, &str)]) {
        let found = grounds.judge(POD, pid, seen, now(seen.started));
        let found: Vec<(Kind, &str)> = found.iter().map(|one| (one.kind, &*one.what)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn rights_that_grow_deviate_and_such_that_are_given_up_do_not() {
        let root = [(
            Kind::Privilege,
            "/bin/app has become root and CHOWN, DAC_OVERRIDE",
        )];
        let mut grounds = of(NOBODY);
        check(&mut grounds, 10, &standing(5, 1, NOBODY), &[]);
        check(&mut grounds, 10, &standing(5, 1, ROOT), &root);
        check(&mut grounds, 10, &standing(5, 1, ROOT), &root);
        check(&mut grounds, 11, &standing(6, 10, NOBODY), &[]);
        check(&mut grounds, 12, &standing(6, 10, ROOT), &root);
        let mut grounds = of(ROOT);
        check(&mut grounds, 11, &standing(6, 10, ROOT), &[]);
        check(&mut grounds, 11, &standing(6, 10, NOBODY), &[]);
        check(&mut grounds, 11, &standing(6, 10, ROOT), &root);
        let file = Rights {
            capabilities: 0b1_0000_0000_0001,
            ..NOBODY
        };
        let mut grounds = of(NOBODY);
        let what = "/bin/app has become CHOWN, NET_ADMIN";
        check(
            &mut grounds,
            10,
            &standing(5, 1, file),
            &[(Kind::Privilege, what)],
        );
    }

    #[test]
    fn a_child_has_what_its_parent_had_when_it_was_made() {
        let mut grounds = of(ROOT);
        let lowered = grounds.judge(POD, 10, &standing(5, 1, NOBODY), now(20));
        assert_eq!(lowered, []);
        check(&mut grounds, 11, &standing(19, 10, ROOT), &[]);
        let late = grounds.judge(POD, 12, &standing(21, 10, ROOT), now(21));
        assert_eq!(late.len(), 1, "made later");
        // What a fork tells is remembered, whoever becomes the parent.
        let mut grounds = of(NOBODY);
        grounds.forked(gone(10), 13, 30, now(30));
        check(&mut grounds, 13, &standing(30, 1, NOBODY), &[]);
        assert_eq!(
            grounds
                .judge(POD, 13, &standing(30, 1, ROOT), now(31))
                .len(),
            1
        );
    }

    #[test]
    fn who_has_got_a_members_number_is_nobodys_parent() {
        let mut grounds = of(NOBODY);
        let [same, another] = [5, 6].map(|started| Parent {
            pid: 10,
            started: Some(started),
        });
        assert_eq!(grounds.pod_of(11, 7, same), Some(POD));
        assert_eq!(grounds.pod_of(11, 7, another), None);
        grounds.forked(another, 11, 7, now(7));
        assert!(!grounds.has(POD, 11, 7));
        grounds.forked(same, 11, 7, now(7));
        assert!(grounds.has(POD, 11, 7));
    }

    #[test]
    fn who_comes_from_outside_brings_what_it_has_and_is_held_to_it() {
        let mut grounds = of(NOBODY);
        check(&mut grounds, 20, &standing(9, 1, ROOT), &[]);
        let mut ready = standing(9, 1, NOBODY);
        ready.program = "/bin/probe".into();
        ready.namespaces = [8; NAMESPACES.len()];
        check(&mut grounds, 20, &ready, &[]);
        ready.program = "/bin/other".into();
        ready.rights = ROOT;
        let found = grounds.judge(POD, 20, &ready, now(9));
        assert_eq!(found.len(), 1, "it has run a program there");
        // One that takes too long has not been made ready.
        let mut grounds = of(NOBODY);
        check(&mut grounds, 20, &standing(9, 1, NOBODY), &[]);
        let late = Now {
            instant: Instant::now() + MADE_READY_IN + Duration::from_secs(1),
            ticks: 9,
        };
        let found = grounds.judge(POD, 20, &ready, late);
        assert_eq!(found.len(), 1, "not for ever");
    }

    #[test]
    fn who_comes_from_outside_may_be_entering_until_it_runs_another_program() {
        let mut grounds = of(NOBODY);
        let mut outside = standing(9, 1, ROOT);
        let begin = Instant::now();
        assert!(grounds.may_be_entering(20, &outside, begin));
        let child = standing(9, 10, ROOT);
        assert!(!grounds.may_be_entering(20, &child, begin), "a member's");
        let found = grounds.judge(POD, 20, &outside, now(9));
        assert_eq!(found, []);
        assert!(grounds.may_be_entering(20, &outside, Instant::now()));
        let late = Instant::now() + MADE_READY_IN;
        assert!(!grounds.may_be_entering(20, &outside, late), "for too long");
        outside.program = "/bin/other".into();
        assert!(!grounds.may_be_entering(20, &outside, Instant::now()));
        assert_eq!(grounds.judge(POD, 20, &outside, now(9)), []);
        assert!(!grounds.may_be_entering(20, &outside, Instant::now()));
    }

    #[test]
    fn another_namespace_and_a_tracer_deviate() {
        let mut grounds = of(NOBODY);
        let mut apart = standing(6, 10, ROOT);
        apart.namespaces[USER] = 1;
        let what = "/bin/app in another user namespace";
        check(&mut grounds, 11, &apart, &[(Kind::Namespace, what)]);
        let mut traced = standing(6, 10, NOBODY);
        traced.tracer = 10;
        check(
            &mut grounds,
            12,
            &traced,
            &[(Kind::Ptrace, "/bin/app is traced")],
        );
        assert_eq!(grounds.pod_of(13, 7, gone(12)), Some(POD));
        assert_eq!(
            grounds.pod_of(13, 5, gone(12)),
            None,
            "older than its parent"
        );
        let elsewhere = grounds.judge_all(Pod::Network(8), vec![(12, traced)], now(7));
        assert_eq!(elsewhere.len(), 1, "it is traced");
        assert_eq!(
            grounds.pod_of(12, 6, gone(10)),
            Some(POD),
            "where it came from"
        );
        grounds.forget(POD);
        assert_eq!(grounds.pod_of(12, 6, gone(10)), None);
        assert!(!grounds.has(POD, 10, 5));
    }

    #[test]
    fn mounts_that_come_and_go_deviate_and_those_of_a_new_container_do_not_at_first() {
        let table = |all: &[&str]| all.iter().map(ToString::to_string).collect();
        let (view, other) = ((1, 1, 1), (2, 1, 1));
        let mut grounds = Grounds::default();
        let now = Instant::now();
        let mut judge = |view, all: &[&str], now| {
            let seen = vec![(10, view, Some(table(all)))];
            let found = grounds.judge_mounts(POD, seen, false, now);
            found.into_iter().map(|one| one.what).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(judge(view, &["a", "b"], now), none);
        assert_eq!(judge(view, &["a", "b"], now), none);
        assert_eq!(judge(view, &["a", "c"], now), ["c", "b is gone"]);
        assert_eq!(judge(other, &["a"], now), none);
        assert_eq!(judge(other, &["a", "b"], now), none, "it is made ready");
        let later = now + MADE_READY_IN;
        assert_eq!(judge(other, &["a", "b", "c"], later), ["c"]);
    }

    #[test]
    fn mounts_that_cannot_be_read_deviate_and_what_was_known_of_them_stays() {
        let mut grounds = Grounds::default();
        let now = Instant::now();
        let mut judge = |all: Option<&str>| {
            let seen = vec![(10, (1, 1, 1), all.map(|one| [one.to_owned()].into()))];
            let found = grounds.judge_mounts(POD, seen, true, now);
            found.into_iter().map(|one| one.what).collect::<Vec<_>>()
        };
        assert!(judge(Some("a")).is_empty());
        assert_eq!(judge(None), ["mounts that cannot be read"]);
        assert_eq!(judge(Some("b")), ["b", "a is gone"]);
        assert!(judge(Some("a")).is_empty());
    }

    #[test]
    fn who_makes_views_without_end_is_told_and_costs_no_more_for_it() {
        let mut grounds = Grounds::default();
        let now = Instant::now();
        let views = |from: u64, number: u64| {
            let all = (from..from + number)
                .map(|namespace| (10, (namespace, 1, 1), Some(BTreeSet::new())));
            all.collect::<Vec<_>>()
        };
        let most = u64::try_from(MAX_TABLES_OF_POD).unwrap();
        assert_eq!(grounds.judge_mounts(POD, views(0, most), true, now), []);
        // Those in which nobody is left make place, if all of the pod was looked at.
        assert_eq!(grounds.judge_mounts(POD, views(most, most), true, now), []);
        let found = grounds.judge_mounts(POD, views(0, 1), false, now);
        let [one] = found.as_slice() else {
            unreachable!("{found:?}")
        };
        assert_eq!(one.what, "more than 256 views of mounts");
        assert_eq!(grounds.tables.len(), MAX_TABLES_OF_POD);
    }
}
