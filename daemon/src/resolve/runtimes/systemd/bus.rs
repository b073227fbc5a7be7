//! The connection to the system bus. Whatever comes from it has a bound in size and in time, and nothing that is called
//! through it is started by the bus.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use zbus::connection::socket::{BoxedSplit, ReadHalf, Split, WriteHalf};
use zbus::proxy::{Builder, CacheProperties, MethodFlags};
use zbus::wire::DynamicDeserialize;
use zbus::{Connection, MessageStream, OwnedVariant, Proxy, fdo};

/// Longest time for the connection, and for each answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest message. Any user of the node may send us signals; those of systemd are far below it.
const MAX_MESSAGE: usize = 1024 * 1024;
/// Bytes that the bus may send until it has let us in.
const MAX_GREETING: usize = 64 * 1024;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nobody on the bus has the name.
    NoService,
    /// The service does not know the unit, machine, or property.
    Unknown,
    /// There was no answer in time.
    Late(String),
    /// The answer is of no use.
    Useless(String),
    /// The connection is gone.
    Lost(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoService => f.write_str("nobody on the bus has the name"),
            Refusal::Unknown => f.write_str("it is not known"),
            Refusal::Late(why) | Refusal::Useless(why) | Refusal::Lost(why) => f.write_str(why),
        }
    }
}

/// An object of a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object<'a> {
    /// Name of the service on the bus.
    pub(super) service: &'a str,
    /// Path of the object.
    pub(super) path: &'a str,
    /// The interface that is spoken to.
    pub(super) interface: &'a str,
}

impl Object<'_> {
    /// The bus itself.
    pub(super) const BUS: Object<'static> = Object {
        service: "org.freedesktop.DBus",
        path: "/org/freedesktop/DBus",
        interface: "org.freedesktop.DBus",
    };
}

/// A connection.
#[derive(Clone)]
pub(super) struct Bus {
    connection: Connection,
}

impl Bus {
    /// Connects to exactly this socket.
    pub(super) async fn connect(path: &Path) -> Result<Bus, String> {
        let owned = path.to_owned();
        // A task of its own: the library panics on some greetings, and a panic must not end the source.
        let greeting = tokio::spawn(async move { greet(&owned).await });
        match tokio::time::timeout(PATIENCE, greeting).await {
            Ok(Ok(bus)) => bus.map_err(|why| format!("cannot connect to {}: {why}", path.display())),
            Ok(Err(_)) => Err(format!("{} does not answer as a D-Bus bus does", path.display())),
            Err(_) => {
                Err(format!("{} takes a connection but has not answered in {PATIENCE:?}", path.display()))
            }
        }
    }

    /// Everything that comes in. Must be read all the time, or answers wait behind it.
    pub(super) fn signals(&self) -> MessageStream {
        MessageStream::from(&self.connection)
    }

    /// Calls a method.
    pub(super) async fn call<B, R>(&self, object: Object<'_>, method: &str, body: &B) -> Result<R, Refusal>
    where
        B: serde::Serialize + zbus::DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        let call = async {
            let proxy: Proxy<'_> = Builder::new(&self.connection)
                .destination(object.service)
                .path(object.path)
                .interface(object.interface)
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            // The node stays as it is: what does not run is not started by being asked.
            proxy.call_with_flags(method, MethodFlags::NO_AUTO_START, body).await
        };
        match tokio::time::timeout(PATIENCE, call).await {
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None)) => Err(Refusal::Useless(format!("{method} of {} has no answer", object.service))),
            Ok(Err(error)) => Err(refusal(object, method, &error)),
            Err(_) => {
                Err(Refusal::Late(format!("{} has not answered {method} in {PATIENCE:?}", object.service)))
            }
        }
    }

    /// Reads a property; `None` if the service does not have it, as older ones do not.
    pub(super) async fn get<T>(&self, object: Object<'_>, property: &str) -> Result<Option<T>, Refusal>
    where
        T: TryFrom<OwnedVariant>,
    {
        let properties = Object { interface: "org.freedesktop.DBus.Properties", ..object };
        let value = match self.call(properties, "Get", &(object.interface, property)).await {
            Ok(value) => value,
            Err(Refusal::Unknown) => return Ok(None),
            Err(Refusal::Useless(why)) => return Err(Refusal::Useless(format!("{property}: {why}"))),
            Err(refusal) => return Err(refusal),
        };
        let value: OwnedVariant = value;
        let wrong = |_| Refusal::Useless(format!("{property} of {} is of a type unheard of", object.service));
        T::try_from(value).map(Some).map_err(wrong)
    }

    /// Has the bus send us what a rule matches.
    pub(super) async fn watch(&self, rule: &str) -> Result<(), Refusal> {
        self.call(Object::BUS, "AddMatch", &rule).await
    }

    /// Ends that.
    pub(super) async fn unwatch(&self, rule: &str) -> Result<(), Refusal> {
        self.call(Object::BUS, "RemoveMatch", &rule).await
    }
}

fn refusal(object: Object<'_>, method: &str, error: &zbus::Error) -> Refusal {
    use fdo::Error as Fdo;
    let says = |text: &dyn fmt::Display| {
        let mut text = format!("{} refuses {method}: {text}", object.service);
        crate::resolve::workload::cut(&mut text, 300);
        text
    };
    match error {
        zbus::Error::InputOutput(why) => Refusal::Lost(format!("the bus has gone away: {why}")),
        zbus::Error::MethodError(name, text, _) => match name.as_str() {
            "org.freedesktop.systemd1.NoSuchUnit" | "org.freedesktop.machine1.NoSuchMachine" => {
                Refusal::Unknown
            }
            name => Refusal::Useless(says(&text.as_deref().unwrap_or(name))),
        },
        zbus::Error::FDO(error) => match &**error {
            Fdo::ServiceUnknown(_) | Fdo::NameHasNoOwner(_) => Refusal::NoService,
            Fdo::UnknownObject(_)
            | Fdo::UnknownInterface(_)
            | Fdo::UnknownProperty(_)
            | Fdo::UnknownMethod(_) => Refusal::Unknown,
            // The bus says so if the service ended before it answered.
            Fdo::NoReply(_) | Fdo::Timeout(_) | Fdo::TimedOut(_) => Refusal::Late(says(error)),
            error => Refusal::Useless(says(error)),
        },
        error => Refusal::Useless(format!("{} answers {method} with nonsense: {error}", object.service)),
    }
}

async fn greet(path: &Path) -> Result<Bus, String> {
    let stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
    let (read, write) = stream.into_split();
    let (greeted, received) = (Arc::new(AtomicBool::new(false)), AtomicUsize::new(0));
    let reader = Reader { socket: read, greeted: Arc::clone(&greeted), received };
    let socket: BoxedSplit = Split::new(Box::new(reader), Box::new(Writer(write)));
    let connection = zbus::connection::Builder::socket(socket).build();
    // Unless it is given up in time, the bus could go on sending in the background.
    let connection = tokio::time::timeout(PATIENCE, connection).await;
    let connection = connection.map_err(|_| format!("it has not answered in {PATIENCE:?}"))?;
    let connection = connection.map_err(|error| error.to_string())?;
    greeted.store(true, Ordering::Relaxed);
    Ok(Bus { connection })
}

/// Reads with a bound on what is read. It takes no file descriptors, so that none are sent.
#[derive(Debug)]
struct Reader {
    socket: OwnedReadHalf,
    greeted: Arc<AtomicBool>,
    received: AtomicUsize,
}

type Received<'a> = Pin<Box<dyn Future<Output = io::Result<(usize, Vec<OwnedFd>)>> + Send + 'a>>;

impl ReadHalf for Reader {
    fn recvmsg<'a, 'b, 'c>(&'a mut self, buffer: &'b mut [u8]) -> Received<'c>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            let too_much = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()));
            if buffer.len() > MAX_MESSAGE {
                return too_much("a message is longer than 1 MiB");
            }
            let size = self.socket.read(buffer).await?;
            let received = self.received.fetch_add(size, Ordering::Relaxed) + size;
            if received > MAX_GREETING && !self.greeted.load(Ordering::Relaxed) {
                return too_much("its greeting does not end");
            }
            Ok((size, Vec::new()))
        })
    }
}

#[derive(Debug)]
struct Writer(OwnedWriteHalf);

type Done<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

impl WriteHalf for Writer {
    fn sendmsg<'a, 'b, 'c, 'd, 'e>(
        &'a mut self,
        buffer: &'b [u8],
        _fds: &'c [BorrowedFd<'d>],
    ) -> Done<'e, usize>
    where
        'a: 'e,
        'b: 'e,
        'c: 'e,
        'd: 'e,
    {
        Box::pin(async move { self.0.write(buffer).await })
    }

    fn close<'a, 'b>(&'a mut self) -> Done<'b, ()>
    where
        'a: 'b,
    {
        Box::pin(async move { self.0.shutdown().await })
    }
}
