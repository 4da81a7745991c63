SUMMARY = "nestd, its client and the profile of the machine"
DESCRIPTION = "What a device needs to serve a model, but for the model: a package of its own."

# The profile is the machine's.
PACKAGE_ARCH = "${MACHINE_ARCH}"

inherit features_check packagegroup

REQUIRED_DISTRO_FEATURES = "systemd"

RDEPENDS:${PN} = "\
    nestctl \
    nestd \
    nestd-profile \
"
