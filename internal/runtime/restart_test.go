package runtime_test

const childEnv = "SKIFF_TEST_CHILD"

func childMain() {}
