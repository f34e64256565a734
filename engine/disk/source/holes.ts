/**
 * Hole detection (SEEK_DATA, SEEK_HOLE): where a file may hold anything but zeros, so that a sparse
 * terabyte costs nothing to scan. A range is skipped only if the file system calls it a hole. Where
 * the file system gives no answer, the rest counts as data.
 */
import type { Extent } from "../../volume.ts";
import { type Libc, libc } from "./libc.ts";

/**
 * The extents of [fromBytes, sizeBytes) that may hold data, in ascending order and disjoint, as the
 * file system tells them; it is asked while the generator is advanced, about a microsecond per
 * extent. Undefined: unknown, read everything. Not merged: an extent may be as small as the
 * file system's block.
 */
export function allocatedExtents(
  fd: number,
  sizeBytes: number,
  fromBytes = 0,
): Generator<Extent, void, undefined> | undefined {
  const calls = libc();
  if (calls === undefined) return undefined;
  if (fromBytes >= sizeBytes) return walk(calls, fd, fromBytes, sizeBytes);
  const probe = calls.lseek(fd, fromBytes, calls.seekData);
  // ENXIO is an answer ("no data from here on"); any other failure says that this file system
  // cannot answer.
  if ("errno" in probe && probe.errno !== calls.errno.noMoreData) return undefined;
  return walk(calls, fd, fromBytes, sizeBytes);
}

function* walk(calls: Libc, fd: number, fromBytes: number, sizeBytes: number): Generator<Extent, void, undefined> {
  let at = fromBytes;
  while (at < sizeBytes) {
    const data = calls.lseek(fd, at, calls.seekData);
    if ("errno" in data && data.errno === calls.errno.noMoreData) return;
    const start = "errno" in data ? at : data.value;
    if (start >= sizeBytes) return;
    const hole = "errno" in data ? data : calls.lseek(fd, start, calls.seekHole);
    // A refusal in mid-way (a file that shrinks under us, a failing disk) leaves the rest to the
    // reader, which meets the cause and reports it.
    const end = "errno" in hole || hole.value <= start ? sizeBytes : Math.min(hole.value, sizeBytes);
    yield { offset: start, length: end - start };
    at = end;
  }
}
