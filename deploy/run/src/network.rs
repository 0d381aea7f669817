//! The loopback of a network namespace of its own: one message to the kernel (rtnetlink).

use anyhow::Context as _;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Brings the loopback up. Its addresses come by themselves.
///
/// # Errors
/// The kernel's own.
pub(crate) fn loopback_up() -> anyhow::Result<()> {
    let failed = "cannot bring up the loopback";
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // The first protocol of this family is that of routes and links.
        None,
    )
    .context(failed)?;
    let mut message = Vec::new();
    // struct nlmsghdr: length, type, flags, sequence, port.
    message.extend(LENGTH.to_ne_bytes());
    message.extend(NEW_LINK.to_ne_bytes());
    message.extend(REQUEST_WITH_ANSWER.to_ne_bytes());
    message.extend([0; 8]);
    // struct ifinfomsg: family and padding, type, index, flags, which flags change.
    message.extend([0; 4]);
    message.extend(LOOPBACK_INDEX.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    rustix::net::send(&socket, &message, SendFlags::empty()).context(failed)?;
    let mut answer = [0; 256];
    let (length, _) =
        rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty()).context(failed)?;
    // struct nlmsgerr: the error, negative, behind the header.
    let error = answer
        .get(16..20)
        .filter(|_| length >= 20)
        .context(failed)?;
    let error = i32::from_ne_bytes(error.try_into()?);
    match error {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(-error)).context(failed),
    }
}

const LENGTH: u32 = 32;
/// `RTM_NEWLINK`.
const NEW_LINK: u16 = 16;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST_WITH_ANSWER: u16 = 5;
/// The loopback is the first link of every namespace.
const LOOPBACK_INDEX: u32 = 1;
/// `IFF_UP`.
const UP: u32 = 1;
