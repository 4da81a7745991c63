SUMMARY = "nestd, its client and the profile of the machine"

# The profile is the machine's.
PACKAGE_ARCH = "${MACHINE_ARCH}"

inherit features_check packagegroup

REQUIRED_DISTRO_FEATURES = "systemd"

RDEPENDS:${PN} = " \
    nestctl \
    nestd \
    nestd-profile \
"
