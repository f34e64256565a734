/** The states of a protected disk. */

/**
 * `initial`: the first points ship what the disk holds. `resyncing`: its tracking was lost, so it is compared with the vault;
 * earlier points stay readable. `protecting`: every cycle gives a crash-consistent point. `waiting`: the store or the seat cannot
 * be had; writes go on and are tracked.
 */
export type ProtectionState = "starting" | "initial" | "resyncing" | "protecting" | "waiting" | "paused" | "stopped" | "failed";
