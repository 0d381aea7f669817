//! What lines are written to.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Standard output or standard error, or a file that is appended to.
#[derive(Debug)]
pub struct Sink(Kind);

#[derive(Debug)]
enum Kind {
    Stdout,
    Stderr,
    File(PathBuf, File),
}

impl Sink {
    /// Standard output: what several logs write there goes out in whole lines.
    pub fn stdout() -> Self {
        Self(Kind::Stdout)
    }

    /// A file, which is made if there is none. `/dev/stdout` and `/dev/stderr` are what is open already:
    /// to open them anew would fail where they are a socket, as under systemd, or another user's.
    ///
    /// # Errors
    /// The system's own.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(match path.to_str() {
            Some("/dev/stdout") => Kind::Stdout,
            Some("/dev/stderr") => Kind::Stderr,
            _ => Kind::File(path.to_owned(), append(path)?),
        }))
    }

    pub(crate) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match &mut self.0 {
            Kind::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(lines)?;
                stdout.flush()
            }
            Kind::Stderr => io::stderr().lock().write_all(lines),
            Kind::File(_, file) => file.write_all(lines),
        }
    }

    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        if let Kind::File(path, file) = &mut self.0 {
            *file = append(path)?;
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}
