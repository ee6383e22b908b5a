/* SPDX-License-Identifier: GPL-2.0-only */
/* BCC includes this before anything else; all it needs of it is that BPF is there. */
#define CONFIG_BPF 1
#define CONFIG_BPF_SYSCALL 1
