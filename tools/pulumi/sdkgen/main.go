// Writes the Python SDK of a Pulumi package: sdkgen SCHEMA FOLDER.
//
// FOLDER becomes a Python project (pyproject.toml and one package). The package's folder is replaced whole, so that what
// the schema has no longer vanishes; nothing else in FOLDER is touched. The same schema gives the same bytes.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/pulumi/pulumi/pkg/v3/codegen/python"
	"github.com/pulumi/pulumi/pkg/v3/codegen/schema"
)

// Stands in the head of every generated file.
const tool = "`make generate` (tools/pulumi/sdkgen) from provider/schema.json"

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: sdkgen SCHEMA FOLDER")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "sdkgen:", err)
		os.Exit(1)
	}
}

func run(schemaFile, folder string) error {
	pkg, err := load(schemaFile)
	if err != nil {
		return fmt.Errorf("%s: %w", schemaFile, err)
	}
	files, err := python.GeneratePackage(tool, pkg, nil, nil)
	if err != nil {
		return err
	}
	name := python.PyPack(pkg.Namespace, pkg.Name)
	// pyproject.toml names a README.md beside itself; the generator writes it into the package only.
	files["README.md"] = files[filepath.Join(name, "README.md")]
	if err := os.RemoveAll(filepath.Join(folder, name)); err != nil {
		return err
	}
	for path, text := range files {
		file := filepath.Join(folder, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// load checks the schema as `pulumi package` does. The package depends on no other, hence the loader that has none.
func load(file string) (*schema.Package, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var spec schema.PackageSpec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, err
	}
	pkg, err := schema.ImportSpec(spec, nil, schema.NewNullLoader(), schema.ValidationOptions{})
	if err != nil {
		return nil, err
	}
	if pkg.Version == nil {
		return nil, errors.New("the package has no version")
	}
	return pkg, nil
}
