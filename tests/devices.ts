/**
 * What `join_test.ts` takes from here: devices for tests stand in `tensor/`, where tests on the floors reach them.
 *
 * @module
 */
export { asGpu } from "../tensor/device_testing.ts";
