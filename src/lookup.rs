//! Looking up names of hosts and users in a static build.
//!
//! glibc does that with the modules that `/etc/nsswitch.conf` lists. Files and DNS are built in; for any other, such as
//! `resolve` or `mdns4_minimal`, even a static program loads a shared library of the machine, and with it the machine's own
//! C library. If that is of another version, the process dies of SIGFPE, as seen on Debian 13 with a binary from Debian 12.

/// Makes lookups in a static build use files and DNS alone, as programs with musl do. In other builds nothing changes.
///
/// Call it before the process has other threads.
pub fn use_built_in_modules() {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    built_in::configure();
}

#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
#[allow(unsafe_code, reason = "a function of glibc that no crate wraps")]
mod built_in {
    use std::ffi::{CStr, c_char, c_int};

    /// Databases and the modules for them, in the order in which they are asked.
    const DATABASES: [(&CStr, &CStr); 3] = [
        (c"hosts", c"files dns"),
        (c"passwd", c"files"),
        (c"group", c"files"),
    ];

    unsafe extern "C" {
        /// Replaces a line of `/etc/nsswitch.conf` for this process.
        fn __nss_configure_lookup(database: *const c_char, line: *const c_char) -> c_int;
    }

    pub(super) fn configure() {
        for (database, line) in DATABASES {
            // SAFETY: both are strings that end with a zero and live for ever; glibc copies what it keeps.
            let code = unsafe { __nss_configure_lookup(database.as_ptr(), line.as_ptr()) };
            assert_eq!(code, 0, "glibc knows its own database {database:?}");
        }
    }
}
