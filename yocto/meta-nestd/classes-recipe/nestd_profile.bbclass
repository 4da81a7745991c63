# The device's profile, and what a model may take on it. Whoever inherits this is of the machine.
#
# NESTD_PROFILE picks the governor's thresholds and the service's memory. The other variables are the daemon's settings
# on which a model's need depends. The recipe nestd-profile writes them for the device, and the class nestd_model checks
# with them that a model fits, so set them where both see them: in the machine's or the distribution's configuration.

# glasses, headset, handheld or plugged
NESTD_PROFILE ??= "headset"

# The machine's memory in MiB; only plugged needs it, whose budget is a share of it.
NESTD_MACHINE_MEMORY_MIB ??= ""
# MemoryHigh of the service in MiB, empty where it is not known. Where a drop-in of your own changes it, say so here.
NESTD_MEMORY_HIGH_MIB ??= "${@nestd_profile_default(d, 'high_mib')}"

NESTD_CONTEXT_TOKENS ??= "4096"
NESTD_PARALLEL_REQUESTS ??= "${@nestd_profile_default(d, 'parallel_requests')}"
# f16 or q8_0
NESTD_KV ??= "f16"
NESTD_PREFIX_CACHE_MIB ??= "${@nestd_profile_default(d, 'prefix_cache_mib')}"
NESTD_SPILL_MIB ??= "512"

PACKAGE_ARCH = "${MACHINE_ARCH}"

def nestd_profile_default(d, key):
    """What a profile has where nothing else is said; yocto/check_layer.py compares it with systemd/profiles/."""
    profiles = {
        "glasses": {"high_mib": "1920", "parallel_requests": "1", "prefix_cache_mib": "64"},
        "headset": {"high_mib": "4096", "parallel_requests": "4", "prefix_cache_mib": "128"},
        "handheld": {"high_mib": "2944", "parallel_requests": "4", "prefix_cache_mib": "128"},
        "plugged": {"high_percent": "75", "parallel_requests": "4", "prefix_cache_mib": "128"},
    }
    name = d.getVar("NESTD_PROFILE")
    if name not in profiles:
        bb.fatal('NESTD_PROFILE is "%s": it has to be one of %s' % (name, ", ".join(profiles)))
    profile = profiles[name]
    if key == "high_mib" and key not in profile:
        machine = d.getVar("NESTD_MACHINE_MEMORY_MIB")
        return str(nestd_number(d, "NESTD_MACHINE_MEMORY_MIB") * int(profile["high_percent"]) // 100) if machine else ""
    return profile[key]

def nestd_number(d, variable):
    """A variable's value as a number."""
    value = d.getVar(variable)
    if not value.isascii() or not value.isdecimal():
        bb.fatal('%s is "%s": it has to be a number' % (variable, value))
    return int(value)

# nooelint: oelint.task.noanonpython - a wrong value should be told before anything is built
python () {
    for variable in ["NESTD_CONTEXT_TOKENS", "NESTD_PARALLEL_REQUESTS", "NESTD_PREFIX_CACHE_MIB", "NESTD_SPILL_MIB"]:
        nestd_number(d, variable)
    if d.getVar("NESTD_MEMORY_HIGH_MIB"):
        nestd_number(d, "NESTD_MEMORY_HIGH_MIB")
    if d.getVar("NESTD_KV") not in ["f16", "q8_0"]:
        bb.fatal('NESTD_KV is "%s": it has to be f16 or q8_0' % d.getVar("NESTD_KV"))
}
