//! Fields that follow from others, so that whoever makes events need not know of them.

use super::{
    event::{Argument, Class, Event, Value},
    field::Field,
};

/// The value that an event has of a field, be it its own or made of others.
pub(super) fn value<'e>(
    event: &'e dyn Event,
    field: Field,
    argument: Argument<'_>,
) -> Option<Value<'e>> {
    let of = |field| event.value(field, Argument::None);
    match field {
        // Only sockets of IPv4 and IPv6 are looked at.
        Field::FdSockfamily => of(Field::FdL4proto).map(|_| Value::Text(b"ip")),
        // Whoever leads a group leads it in every PID namespace.
        Field::ProcIsVpgidLeader => {
            let leads = of(Field::ProcPid)? == of(Field::ProcPgid)?;
            Some(Value::Flag(leads))
        }
        // A user without a name has this one: `user.name != root` holds of him.
        Field::UserName => {
            let named = of(field);
            named.or_else(|| of(Field::UserUid).map(|_| Value::Text(NAMELESS)))
        }
        Field::GroupName => {
            let named = of(field);
            named.or_else(|| of(Field::GroupGid).map(|_| Value::Text(NAMELESS)))
        }
        Field::FdIp => ends(event, field).next(),
        Field::FdPort => ends(event, field).next(),
        // Nobody is at the other end of a socket that waits.
        Field::FdRip | Field::FdCip | Field::FdRport | Field::FdCport
            if event.class() == Class::Listen =>
        {
            None
        }
        _ => event.value(field, argument),
    }
}

/// The addresses, or ports, of both ends of a socket, the other end first.
pub(super) fn ends(event: &dyn Event, field: Field) -> impl Iterator<Item = Value<'_>> {
    let both = match field {
        Field::FdIp => [Field::FdRip, Field::FdLip],
        _ => [Field::FdRport, Field::FdLport],
    };
    let each = both.into_iter();
    each.filter_map(|end| value(event, end, Argument::None))
}

/// Falco's word for a name that is not known.
const NAMELESS: &[u8] = b"<NA>";
