SUMMARY = "Small image that answers: nestd with the demo model"
DESCRIPTION = "Boots to systemd, with nestd behind its sockets and the demo model beside it."
LICENSE = "MIT"

inherit core-image features_check

REQUIRED_DISTRO_FEATURES = "systemd"

IMAGE_INSTALL = "\
    nestd-model-demo \
    packagegroup-core-boot \
    packagegroup-nestd \
    ${CORE_IMAGE_EXTRA_INSTALL} \
"
