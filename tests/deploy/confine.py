"""Runs a program as nobody, without capabilities, under a seccomp profile: `confine.py PROFILE COMMAND…`.

The profile is in the format that Docker reads. What a container runtime or systemd would do to the program's system calls
is done by the same library, libseccomp, so that a profile that lacks a call is found without either of them.
"""

import ctypes
import json
import os
import platform
import sys

import pyseccomp

NOBODY = 65532
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
ACTIONS = {"SCMP_ACT_ALLOW": lambda _: pyseccomp.ALLOW, "SCMP_ACT_ERRNO": lambda rule: pyseccomp.ERRNO(rule.get("errnoRet", 1))}
OPERATORS = {
    "SCMP_CMP_EQ": lambda argument: pyseccomp.Arg(argument["index"], pyseccomp.EQ, argument["value"]),
    "SCMP_CMP_MASKED_EQ": lambda argument: pyseccomp.Arg(
        argument["index"], pyseccomp.MASKED_EQ, argument["value"], argument["valueTwo"]
    ),
}


def load(profile):
    """Puts the profile in force for this process and whatever it becomes."""
    kernel = pyseccomp.SyscallFilter(pyseccomp.ERRNO(profile["defaultErrnoRet"]))
    for rule in profile["syscalls"]:
        arches = rule.get("includes", {}).get("arches")
        if arches and ARCHITECTURES[platform.machine()] not in arches:
            continue
        arguments = [OPERATORS[argument["op"]](argument) for argument in rule.get("args", [])]
        for name in rule["names"]:
            try:
                kernel.add_rule(ACTIONS[rule["action"]](rule), name, *arguments)
            except OSError as unknown:
                # A call that this architecture does not have: container runtimes pass over it, too.
                if rule["action"] != "SCMP_ACT_ALLOW" or unknown.errno not in (2, 14, 22):
                    raise
    kernel.load()


def main():
    profile, *command = sys.argv[1:]
    with open(profile) as file:
        profile = json.load(file)
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in range(64):
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; the last ones do not exist everywhere
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    load(profile)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
