//! Every key of `rouse.toml`, with its kind and its default. The comments in contrib/rouse.example.toml explain the
//! meaning.
//!
//! The reader must request exactly the keys that a section has here. If it does not, [`super::document`] panics in
//! debug builds. `config/schema.rs`, a test, makes the JSON Schema from these tables, and `tests/tests/schemas.rs`
//! compares what the schema accepts with what the reader accepts.

use rouse_shared::limits::{LEAST_MEMORY, MOST_PIDS};

/// The keys of a table, and what they ask of each other.
pub struct Section {
    pub(super) keys: &'static [Key],
    pub(super) rules: &'static [Rule],
}

/// One key of a table.
pub struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) required: bool,
    /// In a form that is valid in both TOML and JSON; absent if there is none, or if it depends on something else.
    pub(super) default: Option<&'static str>,
}

/// What a key's value may be.
pub enum Kind {
    /// A string that is not empty.
    Word,
    /// Any string.
    Text,
    /// A string that matches an expression.
    Pattern(&'static str),
    /// One of these strings.
    Choice(&'static [&'static str]),
    /// `true` or `false`.
    Boolean,
    /// An integer in a range, both ends included.
    Whole(u64, u64),
    /// An integer of 32 bits, which may be negative.
    Signed,
    /// A number from 0 on.
    Number,
    /// A number above 0.
    Positive,
    /// Seconds or text with units; integers from the given one on.
    Duration(u64),
    /// The same, or any integer below 0.
    DurationOrNever,
    /// Bytes, at least so many.
    Size(u64),
    /// A table of strings with keys of the user's choice.
    Texts,
    /// A list of at least so many.
    List(usize, &'static Kind),
    /// Exactly two strings.
    Pair,
    /// A table.
    Table(&'static Section),
    /// Any of these.
    Any(&'static [Kind]),
}

/// What the keys of a table ask of each other.
pub enum Rule {
    /// Beside the first key one of the others is needed.
    Needs(&'static str, &'static [&'static str]),
    /// Two of these can never be set together.
    Apart(&'static [&'static str]),
    /// One of these at least.
    Some(&'static [&'static str]),
}

const fn key(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, required: false, default: None }
}

impl Key {
    const fn required(self) -> Self {
        Self { required: true, ..self }
    }

    const fn default(self, value: &'static str) -> Self {
        Self { default: Some(value), ..self }
    }
}

const U32: u64 = u32::MAX as u64;
const COUNT: Kind = Kind::Whole(0, U32);
const AT_LEAST_ONE: Kind = Kind::Whole(1, U32);
const ADDRESS: Kind = Kind::Pattern(r"^([0-9.]+|\[[0-9A-Fa-f:.%]+\]):[0-9]+$");
const EMAIL: Kind = Kind::Pattern("^.+@.+$");
const BROKER: Kind = Kind::Pattern(r"^amqps?://\S+$");
const WEB: Kind = Kind::Pattern(r"^(https?://\S+)?$");
const STORE: Kind = Kind::Pattern(r"^(file:///[^\s?#]+|s3://[A-Za-z0-9._-]{3,63}(/[^\s?#]*)?)$");
const DATABASE: Kind = Kind::Pattern(r"^postgres(ql)?://\S+$");
const OWNER: Kind = Kind::Any(&[
    Kind::Whole(0, 999_999_999_999),
    Kind::Choice(&["self", "amazon", "aws-marketplace", "aws-backup-vault", "microsoft"]),
    Kind::Pattern("^(-*[0-9]){12}-*$"),
]);
const USER_DATA: Kind = Kind::Any(&[Kind::Text, Kind::Table(&FILE)]);
const ZONE: Kind = Kind::Pattern("^[a-z]$");
const SECRET: Kind = Kind::Any(&[Kind::Word, Kind::Table(&SECRET_SOURCE)]);

/// A table whose keys the user chooses.
pub(super) static FREE: Section = Section { keys: &[], rules: &[] };

/// `{ file = … }`
pub(super) static FILE: Section = Section { keys: &[key("file", Kind::Word).required()], rules: &[] };

/// `{ file = … }` or `{ env = … }`
pub(super) static SECRET_SOURCE: Section = Section {
    keys: &[key("file", Kind::Word), key("env", Kind::Word)],
    rules: &[Rule::Some(&["file", "env"]), Rule::Apart(&["file", "env"])],
};

/// `{ cert = …, key = … }`
pub(super) static TLS: Section =
    Section { keys: &[key("cert", Kind::Word).required(), key("key", Kind::Word).required()], rules: &[] };

/// The whole file.
pub(super) static ROOT: Section = Section {
    keys: &[
        key("master", Kind::Table(&MASTER)),
        key("broker", Kind::Table(&BROKER_KEYS)),
        key("mail", Kind::Table(&MAIL)),
        key("audit", Kind::Table(&AUDIT)),
        key("scheduling", Kind::Table(&SCHEDULING)),
        key("limits", Kind::Table(&LIMITS)),
        key("store", Kind::Table(&STORE_KEYS)),
        key("blobs", Kind::Table(&BLOBS)),
        key("retention", Kind::Table(&RETENTION)),
        key("token", Kind::List(0, &Kind::Table(&TOKEN))),
        key("remote_user", Kind::Table(&REMOTE_USER)),
        key("worker", Kind::List(0, &Kind::Table(&WORKER))),
    ],
    rules: &[],
};

const RIGHTS: Kind = Kind::List(1, &Kind::Choice(&["read", "build", "operate", "admin"]));
const PROXY: Kind = Kind::Pattern("^[0-9A-Fa-f:.]+$");

/// `[[token]]`
pub(super) static TOKEN: Section = Section {
    keys: &[
        key("name", Kind::Pattern("^[A-Za-z0-9_.-]{1,63}$")).required(),
        key("hash", Kind::Pattern("^sha256:[0-9A-Fa-f]{64}$")).required(),
        key("may", RIGHTS).required(),
    ],
    rules: &[],
};

/// `[remote_user]`
pub(super) static REMOTE_USER: Section = Section {
    keys: &[
        key("trusted_proxies", Kind::Any(&[PROXY, Kind::List(1, &PROXY)])).required(),
        key("may", RIGHTS).required(),
    ],
    rules: &[],
};

/// `[master]`
pub(super) static MASTER: Section = Section {
    keys: &[
        key("name", Kind::Pattern("^[A-Za-z0-9_.-]{1,63}$")).default("\"rouse\""),
        key("state_dir", Kind::Word).default("\"/var/lib/rouse\""),
        key("listen", ADDRESS).default("\"127.0.0.1:8090\""),
        key("api_token", SECRET),
        key("read_token", Kind::Boolean),
        key("tls", Kind::Table(&TLS)),
        key("restart_lease", Kind::Duration(0)).default("600"),
    ],
    rules: &[],
};

/// `[broker]`
pub(super) static BROKER_KEYS: Section = Section {
    keys: &[
        key("listen", Kind::Any(&[ADDRESS, Kind::List(1, &ADDRESS)])).default("[\"127.0.0.1:5672\"]"),
        key("url", Kind::Any(&[BROKER, Kind::Table(&SECRET_SOURCE)])),
        key("ca", Kind::Word),
        key("agent_url", Kind::Pattern(r"^amqps?://[^@/?#\s]+([/?#]\S*)?$")),
        key("auth_listen", ADDRESS).default("\"127.0.0.1:8091\""),
        key("tls", Kind::Any(&[Kind::Choice(&["on", "off"]), Kind::Table(&TLS)])),
        key("auth_secret", Kind::Any(&[Kind::Pattern("^[A-Za-z0-9_-]{20,}$"), Kind::Table(&SECRET_SOURCE)])),
        key("management_url", Kind::Any(&[Kind::Pattern(r"^https?://\S+$"), Kind::Table(&SECRET_SOURCE)])),
    ],
    rules: &[],
};

/// `[mail]`
pub(super) static MAIL: Section = Section {
    keys: &[
        key("from", EMAIL),
        key("hello_name", Kind::Pattern(r"^([A-Za-z0-9_.-]+|\[[A-Za-z0-9.:]+\])$")),
        key("relay", Kind::Any(&[Kind::Pattern(r"^smtps?://\S+$"), Kind::Table(&SECRET_SOURCE)]))
            .default("\"smtp://localhost:25\""),
        key("extra_recipients", Kind::Any(&[EMAIL, Kind::List(0, &EMAIL)])).default("[]"),
        key("ca", Kind::Word),
    ],
    rules: &[],
};

/// `[audit]`
pub(super) static AUDIT: Section = Section {
    keys: &[
        key("interval", Kind::Duration(1)).default("\"2m\""),
        key("on_orphan", Kind::Choice(&["terminate", "report"])).default("\"terminate\""),
    ],
    rules: &[],
};

/// `[scheduling]`
pub(super) static SCHEDULING: Section = Section {
    keys: &[key("among_equals", Kind::Choice(&["pack", "spread", "cheapest"])).default("\"pack\"")],
    rules: &[],
};

/// `[retention]`
pub(super) static RETENTION: Section = Section {
    keys: &[key("builds", Kind::Duration(1)), key("logs", Kind::Duration(1)), key("max_size", Kind::Size(1))],
    rules: &[],
};

/// `[store]`
pub(super) static STORE_KEYS: Section =
    Section { keys: &[key("url", Kind::Any(&[DATABASE, Kind::Table(&SECRET_SOURCE)]))], rules: &[] };

/// `[blobs]`
pub(super) static BLOBS: Section = Section {
    keys: &[
        key("store", STORE),
        key("region", Kind::Text),
        key("endpoint_url", WEB),
        key("identifier", Kind::Word),
        key("secret_identifier", SECRET),
        key("profile", Kind::Text),
    ],
    rules: &[Rule::Needs("identifier", &["secret_identifier"]), Rule::Needs("secret_identifier", &["identifier"])],
};

/// `[limits]`
pub(super) static LIMITS: Section = Section {
    keys: &[
        key("max_hosts", AT_LEAST_ONE),
        key("mail_after_failed_starts", AT_LEAST_ONE).default("3"),
        key("queue_timeout", Kind::Duration(1)),
        key("max_spend_per_day", Kind::Number).default("0"),
        key("max_log_size", Kind::Size(1)).default("\"256MB\""),
    ],
    rules: &[],
};

/// `[[worker]]`
pub(super) static WORKER: Section = Section {
    keys: &[
        key("name", Kind::Pattern(r"^([a-z0-9][a-z0-9-]*)?(\{[0-9]{1,9}\.\.[0-9]{1,9}\})?([a-z0-9-]*[a-z0-9])?$"))
            .required(),
        key("password", SECRET).required(),
        key("max_builds", AT_LEAST_ONE),
        key("keepalive_interval", Kind::Any(&[Kind::Choice(&["none"]), Kind::Duration(1)])).default("10"),
        key("lease", Kind::Duration(1)),
        key("grace", Kind::Duration(0)).default("600"),
        key("missing_timeout", Kind::Duration(1)),
        key("notify_on_missing", Kind::Any(&[EMAIL, Kind::List(0, &EMAIL)])).default("[]"),
        key("properties", Kind::Texts).default("{}"),
        key("run_as", Kind::Pattern("^[^ :/]+$")),
        key("limits", Kind::Table(&STEP_LIMITS)),
        key("build_wait_timeout", Kind::DurationOrNever),
        key("max_uses", COUNT).default("0"),
        key("min_idle", COUNT).default("0"),
        key("prefer", Kind::Signed).default("0"),
        key("ec2", Kind::Table(&EC2)),
        key("libvirt", Kind::Table(&LIBVIRT)),
        key("openstack", Kind::Table(&OPENSTACK)),
        key("process", Kind::Table(&PROCESS)),
    ],
    rules: &[
        Rule::Apart(PROVIDERS),
        Rule::Needs("build_wait_timeout", PROVIDERS),
        Rule::Needs("max_uses", PROVIDERS),
        Rule::Needs("min_idle", PROVIDERS),
        Rule::Needs("prefer", PROVIDERS),
    ],
};

/// `limits` of `[[worker]]`.
pub(super) static STEP_LIMITS: Section = Section {
    keys: &[
        key("memory", Kind::Size(LEAST_MEMORY)),
        key("pids", Kind::Whole(1, MOST_PIDS)),
        key("cpus", Kind::Positive),
    ],
    rules: &[],
};

const PROVIDERS: &[&str] = &["ec2", "libvirt", "openstack", "process"];

/// `[worker.ec2]`
pub(super) static EC2: Section = Section {
    keys: &[
        key("instance_type", Kind::Any(&[Kind::Word, Kind::List(1, &Kind::Word)])).required(),
        key("region", Kind::Text),
        key("placement", Kind::Any(&[ZONE, Kind::List(0, &ZONE)])).default("[]"),
        key("ami", Kind::Word),
        key("valid_ami_owners", Kind::Any(&[OWNER, Kind::List(1, &OWNER)])),
        key("valid_ami_location_regex", Kind::Word),
        key("identifier", Kind::Word),
        key("secret_identifier", SECRET),
        key("profile", Kind::Text),
        key("keypair_name", Kind::Word).default("\"latent_rouse_worker\""),
        key("security_name", Kind::Word).default("\"latent_rouse_worker\""),
        key("security_group_ids", Kind::Any(&[Kind::Word, Kind::List(0, &Kind::Word)])).default("[]"),
        key("subnet_id", Kind::Text),
        key("instance_profile_name", Kind::Text),
        key("user_data", USER_DATA),
        key("elastic_ip", Kind::Pattern(r"^[0-9]{1,3}(\.[0-9]{1,3}){3}$")),
        key("tags", Kind::Texts).default("{}"),
        key("volumes", Kind::List(0, &Kind::Pair)).default("[]"),
        key("block_devices", Kind::List(0, &Kind::Table(&BLOCK_DEVICE))).default("[]"),
        key("spot_instance", Kind::Boolean).default("false"),
        key("max_spot_price", Kind::Positive),
        key("price_multiplier", Kind::Positive),
        key("on_demand_fallback", Kind::Boolean).default("false"),
        key("on_idle", Kind::Choice(&["terminate", "stop", "hibernate"])).default("\"terminate\""),
        key("max_age", Kind::Duration(1)).default("\"7d\""),
        key("price_per_hour", Kind::Number),
        key("identity_certificates", Kind::Word),
        key("endpoint_url", WEB),
    ],
    rules: &[
        Rule::Some(&["ami", "valid_ami_owners", "valid_ami_location_regex"]),
        Rule::Apart(&["ami", "valid_ami_owners"]),
        Rule::Apart(&["ami", "valid_ami_location_regex"]),
        Rule::Needs("identifier", &["secret_identifier"]),
        Rule::Needs("secret_identifier", &["identifier"]),
    ],
};

/// An item of `block_devices`.
pub(super) static BLOCK_DEVICE: Section = Section {
    keys: &[key("device", Kind::Word).required(), key("size_gb", AT_LEAST_ONE), key("type", Kind::Word)],
    rules: &[],
};

/// `[worker.libvirt]`
pub(super) static LIBVIRT: Section = Section {
    keys: &[
        key("connection", Kind::Pattern(":/")).required(),
        key("hd_image", Kind::Word),
        key("base_image", Kind::Word),
        key("xml", Kind::Any(&[Kind::Choice(&["builtin"]), Kind::Table(&FILE)])),
        key("memory_mb", AT_LEAST_ONE).default("2048"),
        key("cpus", AT_LEAST_ONE).default("2"),
        key("network", Kind::Word).default("\"default\""),
    ],
    rules: &[Rule::Needs("base_image", &["hd_image"])],
};

/// `[worker.openstack]`
pub(super) static OPENSTACK: Section = Section {
    keys: &[
        key("flavor", Kind::Any(&[Kind::Word, Kind::List(1, &Kind::Word)])).required(),
        key("image", Kind::Any(&[Kind::Word, Kind::Table(&IMAGE)])).required(),
        key("cloud", Kind::Text),
        key("os_username", Kind::Text),
        key("os_password", SECRET),
        key("os_tenant_name", Kind::Text),
        key("os_user_domain", Kind::Text),
        key("os_project_domain", Kind::Text),
        key("os_auth_url", WEB),
        key("os_region_name", Kind::Text),
        key("os_cacert", Kind::Word),
        key("os_application_credential_id", Kind::Word),
        key("os_application_credential_secret", SECRET),
        key("meta", Kind::Texts).default("{}"),
        key("networks", Kind::Any(&[Kind::Word, Kind::List(0, &Kind::Word)])).default("[]"),
        key("key_name", Kind::Text),
        key("security_groups", Kind::Any(&[Kind::Word, Kind::List(0, &Kind::Word)])).default("[]"),
        key("user_data", USER_DATA),
        key("availability_zone", Kind::Any(&[Kind::Text, Kind::List(0, &Kind::Word)])),
        key("boot_volume_gb", COUNT).default("0"),
        key("floating_ip_pool", Kind::Text),
        key("config_drive", Kind::Boolean).default("false"),
        key("price_per_hour", Kind::Number),
    ],
    rules: &[
        Rule::Needs("os_application_credential_id", &["os_application_credential_secret"]),
        Rule::Needs("os_application_credential_secret", &["os_application_credential_id"]),
        Rule::Apart(&["os_application_credential_id", "os_username"]),
        Rule::Apart(&["os_application_credential_id", "os_password"]),
    ],
};

/// The table that `image` of `[worker.openstack]` may be.
pub(super) static IMAGE: Section = Section {
    keys: &[
        key("name_regex", Kind::Word),
        key("pick", Kind::Choice(&["newest", "oldest"])),
        key("command", Kind::List(1, &Kind::Text)),
    ],
    rules: &[
        Rule::Some(&["name_regex", "command"]),
        Rule::Apart(&["name_regex", "command"]),
        Rule::Needs("pick", &["name_regex"]),
    ],
};

/// `[worker.process]`
pub(super) static PROCESS: Section =
    Section { keys: &[key("agent", Kind::Word).default("\"rouse-agent\"")], rules: &[] };
