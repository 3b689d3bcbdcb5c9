//! Child processes that do not outlive this one.

use std::process::Command;

pub use rustix::process::Signal;

/// Makes the child receive `signal` when this process dies in whatever way,
/// SIGKILL included. On systems that cannot do this (all but Linux) it does
/// nothing, and the caller has to end the child itself.
///
/// The kernel ties this to the *thread* that spawns the child: spawn from one
/// that lives as long as the child should.
pub fn die_with_parent(command: &mut Command, signal: Signal) {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::process::CommandExt as _;

        use rustix::process::{getpid, getppid, set_parent_process_death_signal};

        let parent = getpid();
        let hook = move || {
            set_parent_process_death_signal(Some(signal))?;
            // The parent may have died before the line above.
            if getppid() == Some(parent) {
                Ok(())
            } else {
                Err(rustix::io::Errno::SRCH.into())
            }
        };
        // SAFETY: between fork and exec only async-signal-safe code may run.
        // The hook makes two plain system calls (prctl, getppid), allocates
        // nothing and takes no lock.
        #[expect(
            unsafe_code,
            reason = "no safe interface runs code between fork and exec"
        )]
        unsafe {
            command.pre_exec(hook);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (command, signal);
}
