/* SPDX-License-Identifier: GPL-2.0-only */
/* BCC includes helpers.h, which knows the target, before this.
 * The registers at a kprobe, of which the program reads the first argument. */
#pragma once
#if defined(bpf_target_x86)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
	unsigned long orig_ax, ip, cs, flags, sp, ss;
};
#elif defined(bpf_target_arm64)
struct pt_regs {
	unsigned long regs[31], sp, pc, pstate;
};
#endif
