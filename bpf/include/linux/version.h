/* SPDX-License-Identifier: GPL-2.0-only */
/* Only old kernels look at the version that a program claims; BCC puts the running one in its place. */
#pragma once
#define LINUX_VERSION_CODE 0
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
