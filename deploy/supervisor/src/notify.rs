//! What the service manager is told: that the daemon serves, reads again, ends, and how it is.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use crate::SupervisorError;

/// Tells the service manager, or nobody where there is none.
#[derive(Debug, Clone, Default)]
pub struct Notify(Option<Arc<Told>>);

#[derive(Debug)]
struct Told {
    socket: UnixDatagram,
    /// Before it was told once that we serve, it waits for that alone.
    serves: AtomicBool,
    /// What found no place in the socket, in its order.
    waiting: Mutex<VecDeque<String>>,
}

impl Notify {
    /// Nobody listens.
    #[must_use]
    pub fn nobody() -> Self {
        Self(None)
    }

    /// To the socket at a path, or at the abstract name after an `@`.
    ///
    /// # Errors
    /// [`SupervisorError::Notify`].
    pub fn to(address: &OsStr) -> Result<Self, SupervisorError> {
        let connected = || -> io::Result<UnixDatagram> {
            let socket = UnixDatagram::unbound()?;
            match address.as_bytes().split_first() {
                Some((b'@', name)) => {
                    socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?;
                }
                _ => socket.connect(address)?,
            }
            // Whoever does not read must not keep us from serving: nothing here waits.
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = connected().map_err(|cause| SupervisorError::Notify {
            address: address.to_string_lossy().into_owned(),
            cause,
        })?;
        let serves = AtomicBool::new(false);
        let waiting = Mutex::default();
        Ok(Self(Some(Arc::new(Told {
            socket,
            serves,
            waiting,
        }))))
    }

    /// We serve, and this is how we are.
    ///
    /// # Errors
    /// The kernel's own, as below: callers log it. The service manager then does what it does with
    /// a daemon that says nothing.
    pub fn ready(&self, status: &str) -> io::Result<()> {
        if let Some(told) = &self.0 {
            told.serves.store(true, Ordering::SeqCst);
        }
        let status = line(status);
        self.tell_surely(&[NotifyState::Ready, NotifyState::Status(&status)])
    }

    /// How we are, in a line for people.
    ///
    /// # Errors
    /// As [`Self::ready`].
    pub fn status(&self, status: &str) -> io::Result<()> {
        self.tell(&[NotifyState::Status(&line(status))])
    }

    /// We read our documents again. [`Self::reloaded`] follows.
    ///
    /// # Errors
    /// As [`Self::ready`].
    pub fn reloading(&self) -> io::Result<()> {
        if !self.serves() {
            return Ok(());
        }
        let now = NotifyState::monotonic_usec_now()?;
        self.tell_surely(&[NotifyState::Reloading, now])
    }

    /// We have read them, whatever came of it.
    ///
    /// # Errors
    /// As [`Self::ready`].
    pub fn reloaded(&self) -> io::Result<()> {
        match self.serves() {
            true => self.tell_surely(&[NotifyState::Ready]),
            // We were not ready before, and reading alone does not make us so.
            false => Ok(()),
        }
    }

    /// We end.
    ///
    /// # Errors
    /// As [`Self::ready`].
    pub fn stopping(&self, status: &str) -> io::Result<()> {
        let status = line(status);
        if let Some(told) = &self.0 {
            let mut waiting = told.waiting();
            // What waits is over with it, and must not keep it out.
            if waiting.len() >= MAX_WAITING {
                waiting.clear();
            }
        }
        self.tell_surely(&[NotifyState::Stopping, NotifyState::Status(&status)])
    }

    /// Gives a sign of life at half of the time that the service manager waits for one, for ever.
    ///
    /// It is to be run by the runtime that serves, on no thread of its own: as long as it is heard, that
    /// runtime takes turns.
    pub async fn watchdog(self, wait: Option<Duration>) {
        let (Some(wait), Some(_)) = (wait, &self.0) else {
            return std::future::pending().await;
        };
        let mut every = interval(turn(wait));
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            // A sign that is lost is followed by another.
            let _ = self.tell(&[NotifyState::Watchdog]);
        }
    }

    /// Looks every second how we are, and tells it when it is something else.
    pub async fn follow(self, status: impl Fn() -> String) {
        if self.0.is_none() {
            return std::future::pending().await;
        }
        let mut every = interval(Duration::from_secs(1));
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = String::new();
        loop {
            every.tick().await;
            // What waits is tried again, also where there is nothing new.
            let _ = self.0.as_ref().map(|told| told.pass_on());
            let now = status();
            if now != last && self.status(&now).is_ok() {
                last = now;
            }
        }
    }

    fn serves(&self) -> bool {
        let told = self.0.as_ref();
        told.is_some_and(|told| told.serves.load(Ordering::SeqCst))
    }

    /// For what may get lost: another of its kind follows.
    fn tell(&self, states: &[NotifyState<'_>]) -> io::Result<()> {
        let Some(told) = &self.0 else { return Ok(()) };
        told.pass_on()?;
        told.socket.send(text(states).as_bytes()).map(drop)
    }

    /// For what is said once. Where the service manager does not read it waits, and goes with the next
    /// sign of life or look at how we are.
    fn tell_surely(&self, states: &[NotifyState<'_>]) -> io::Result<()> {
        let Some(told) = &self.0 else { return Ok(()) };
        told.wait(text(states))?;
        match told.pass_on() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}

impl Told {
    fn wait(&self, message: String) -> io::Result<()> {
        let mut waiting = self.waiting();
        if waiting.len() >= MAX_WAITING {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        waiting.push_back(message);
        Ok(())
    }

    /// Sends what waits.
    fn pass_on(&self) -> io::Result<()> {
        let mut waiting = self.waiting();
        while let Some(first) = waiting.front() {
            match self.socket.send(first.as_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                sent => {
                    // A manager that is gone hears nothing later, either.
                    waiting.pop_front();
                    sent?;
                }
            }
        }
        Ok(())
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text(states: &[NotifyState<'_>]) -> String {
    states.iter().map(|state| format!("{state}\n")).collect()
}

/// A sign that is late is still in time.
fn turn(wait: Duration) -> Duration {
    (wait / 2).max(Duration::from_millis(1))
}

/// A line of its own: what follows a line feed would be another message.
fn line(text: &str) -> String {
    let text = text.chars().take(MAX_STATUS);
    text.map(|one| if one.is_control() { ' ' } else { one })
        .collect()
}

/// How many messages may wait.
const MAX_WAITING: usize = 16;

/// How long a status may be.
const MAX_STATUS: usize = 512;

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsString,
        io::ErrorKind,
        os::{
            linux::net::SocketAddrExt as _,
            unix::net::{SocketAddr, UnixDatagram},
        },
        sync::{Arc, Mutex},
        time::Duration,
    };

    use tempfile::TempDir;

    use super::Notify;

    fn pair() -> (TempDir, UnixDatagram, Notify) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let notify = Notify::to(path.as_os_str()).unwrap();
        (folder, manager, notify)
    }

    fn heard(manager: &UnixDatagram) -> Option<String> {
        let mut space = [0; 4096];
        let length = manager.recv(&mut space).ok()?;
        Some(String::from_utf8_lossy(&space[..length]).into_owned())
    }

    #[test]
    fn a_status_is_one_line_and_no_other_message() {
        let (_folder, manager, notify) = pair();
        notify.ready("all\nSTOPPING=1\r\0well").unwrap();
        assert_eq!(
            heard(&manager).unwrap(),
            "READY=1\nSTATUS=all STOPPING=1  well\n"
        );
        notify.status(&"long".repeat(1000)).unwrap();
        assert_eq!(heard(&manager).unwrap().len(), "STATUS=\n".len() + 512);
    }

    #[test]
    fn reading_again_is_told_by_a_daemon_that_serves_alone() {
        let (_folder, manager, notify) = pair();
        notify.reloading().unwrap();
        notify.reloaded().unwrap();
        assert_eq!(heard(&manager), None);
        notify.ready("").unwrap();
        heard(&manager).unwrap();
        notify.reloading().unwrap();
        let told = heard(&manager).unwrap();
        let rest = told.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(rest.trim_end().parse::<u64>().unwrap() > 0);
        notify.reloaded().unwrap();
        assert_eq!(heard(&manager).unwrap(), "READY=1\n");
        notify.stopping("over").unwrap();
        assert_eq!(heard(&manager).unwrap(), "STOPPING=1\nSTATUS=over\n");
    }

    #[test]
    fn a_name_after_an_at_sign_is_abstract() {
        let name = format!("postern-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let notify = Notify::to(&OsString::from(format!("@{name}"))).unwrap();
        notify.ready("").unwrap();
        assert_eq!(heard(&manager).unwrap(), "READY=1\nSTATUS=\n");
    }

    #[test]
    fn a_manager_that_is_not_there_is_named_and_one_that_does_not_read_holds_up_nobody() {
        let error = Notify::to(&OsString::from("/nowhere/notify")).unwrap_err();
        assert!(error.to_string().contains("`/nowhere/notify`"), "{error}");
        let (_folder, _manager, notify) = pair();
        // The kernel's queue of a datagram socket is short.
        let refused = (0..10_000).find_map(|_| notify.status("hello").err());
        assert_eq!(refused.unwrap().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn what_is_said_once_waits_for_a_manager_that_reads_late_and_keeps_its_order() {
        let (_folder, manager, notify) = pair();
        while notify.status("before").is_ok() {}
        notify.ready("well").unwrap();
        notify.stopping("over").unwrap();
        // What may get lost does not overtake it.
        notify.status("again").unwrap_err();
        let mut told = Vec::new();
        while let Some(message) = heard(&manager) {
            told.push(message);
        }
        assert!(told.iter().all(|one| one == "STATUS=before\n"), "{told:?}");
        notify.status("later").unwrap();
        for expected in [
            "READY=1\nSTATUS=well\n",
            "STOPPING=1\nSTATUS=over\n",
            "STATUS=later\n",
        ] {
            assert_eq!(heard(&manager).unwrap(), expected);
        }
        assert_eq!(heard(&manager), None);
        // It waits within a bound.
        while notify.status("before").is_ok() {}
        let refused = (0..=super::MAX_WAITING).find_map(|_| notify.ready("").err());
        assert_eq!(refused.unwrap().kind(), ErrorKind::WouldBlock);
        notify.stopping("over").unwrap();
    }

    /// The next message, within a deadline.
    async fn next(manager: UnixDatagram) -> (UnixDatagram, String) {
        let heard = tokio::task::spawn_blocking(move || {
            manager.set_nonblocking(false).unwrap();
            let deadline = Some(Duration::from_secs(20));
            manager.set_read_timeout(deadline).unwrap();
            let told = heard(&manager).expect("nothing was told in time");
            (manager, told)
        });
        heard.await.unwrap()
    }

    #[tokio::test]
    async fn signs_of_life_come_again_and_again() {
        let (_folder, mut manager, notify) = pair();
        let signs = tokio::spawn(notify.watchdog(Some(Duration::from_millis(20))));
        for _ in 0..5 {
            let told;
            (manager, told) = next(manager).await;
            assert_eq!(told, "WATCHDOG=1\n");
        }
        signs.abort();
    }

    #[test]
    fn half_of_the_time_is_left_for_a_sign_that_is_late() {
        assert_eq!(
            super::turn(Duration::from_secs(30)),
            Duration::from_secs(15)
        );
        assert_eq!(
            super::turn(Duration::from_micros(1)),
            Duration::from_millis(1)
        );
    }

    #[tokio::test]
    async fn how_we_are_is_told_when_it_is_something_else() {
        let (_folder, manager, notify) = pair();
        let how = Arc::new(Mutex::new("well"));
        let asked = how.clone();
        let told = tokio::spawn(notify.follow(move || asked.lock().unwrap().to_string()));
        let (manager, first) = next(manager).await;
        assert_eq!(first, "STATUS=well\n");
        *how.lock().unwrap() = "unwell";
        let (_, second) = next(manager).await;
        assert_eq!(second, "STATUS=unwell\n");
        told.abort();
    }
}
